"""Pure: time to first token and time per token of a class of equal endpoints, learned online.

- time per output token: a straight line over the number of calls running at the grant, fitted to
  the settled calls with exponential forgetting, and moved so that half of them lie above it;
- time to first token: prefill.py's model of the prompt work in front of it.

A line with data at one load only is flat; nothing fitted is negative. Endpoints of a class share
what is fitted, and each has its own `slowness` ratio, so that a replica on a slow node is told
apart without waiting for it to collect data of its own.

Caveat: `running` is taken at the grant, not integrated over the call; forgetting over about fifty
calls keeps up with a load that changes more slowly than that.
"""

from __future__ import annotations

from typing import Final

from agentcloud.cluster.prefill import PrefillModel, RunningMedian, pairs_of

#: Weight kept by older calls at each new one: a memory of about 50 calls.
FORGET: Final = 0.98
#: Weight of a new call in an endpoint's slowness and in lengths of answers.
BLEND: Final = 0.1
#: Assumed for comparing endpoints until there is data; never shown as a prediction.
PRIOR_TTFT_S: Final = 0.5
PRIOR_PER_TOKEN_S: Final = 0.02
PRIOR_OUTPUT_TOKENS: Final = 256.0
_FASTEST: Final = 0.2
_SLOWEST: Final = 5.0
#: Of times below this errors count as they are, above it less the longer the time.
_LEAST_S: Final = 1e-3


class Line:
    """y = intercept + slope x of positive y: half of what is measured lies above it.

    Least squares with exponential forgetting, neither term negative, times a running median of
    measured / fitted: times are skewed, and a mean lies above most of them.
    """

    __slots__ = (
        "_median",
        "_sx",
        "_sxx",
        "_sxy",
        "_sy",
        "_weight",
        "intercept",
        "samples",
        "slope",
    )

    def __init__(self) -> None:
        self._weight = self._sx = self._sy = self._sxx = self._sxy = 0.0
        self._median = RunningMedian()
        self.intercept = self.slope = 0.0
        self.samples = 0

    def learn(self, x: float, y: float) -> None:
        """Take one measurement in."""
        expected = self.at(x) if self.samples else y
        if self.samples:
            self._median.learn(y, expected)
        self.samples += 1
        # By what was expected: after a change, what is measured counts as much as what was.
        weight = 1.0 / max(_LEAST_S, expected)
        self._weight = self._weight * FORGET + weight
        self._sx = self._sx * FORGET + weight * x
        self._sy = self._sy * FORGET + weight * y
        self._sxx = self._sxx * FORGET + weight * x * x
        self._sxy = self._sxy * FORGET + weight * x * y
        mean_x, mean_y = self._sx / self._weight, self._sy / self._weight
        spread = self._sxx / self._weight - mean_x * mean_x
        slope = 0.0
        if spread > 1e-9 * (1.0 + mean_x * mean_x):
            slope = max(0.0, (self._sxy / self._weight - mean_x * mean_y) / spread)
        intercept = mean_y - slope * mean_x
        if intercept < 0.0:
            # Through the origin instead: a negative time at low load would look free.
            intercept, slope = 0.0, self._sxy / self._sxx
        bias = self._median.factor
        self.intercept, self.slope = bias * intercept, bias * slope

    def at(self, x: float) -> float:
        """The fitted value."""
        return self.intercept + self.slope * x

    def __repr__(self) -> str:
        return f"<Line {self.intercept:.6g}+{self.slope:.6g}x n={self.samples}>"


class Estimate:
    """What a call would take, seconds, waiting at the scheduler not included.

    Not a dataclass, as the others that each decision makes: mypyc compiles an
    `__init__` that is written out, and runs a dataclass's as Python.

    Attributes:
        ttft_s: to the first token (the prior where nothing was measured).
        total_s: to the last.
        ttft_known: whether `ttft_s` was learned.
        known: whether `total_s` was learned.
        per_token_s: the time per output token that `total_s` is made of.
    """

    __slots__ = ("known", "per_token_s", "total_s", "ttft_known", "ttft_s")

    def __init__(
        self, ttft_s: float, total_s: float, ttft_known: bool, known: bool, per_token_s: float
    ) -> None:
        self.ttft_s = ttft_s
        self.total_s = total_s
        self.ttft_known = ttft_known
        self.known = known
        self.per_token_s = per_token_s


class Predictor:
    """Learns one class of equal endpoints from its settled calls."""

    __slots__ = ("_lengths", "per_token", "ttft")

    def __init__(self) -> None:
        self.ttft = PrefillModel()
        self.per_token = Line()
        self._lengths: dict[int, float] = {}

    def learn(
        self,
        *,
        running: int,
        prompt_tokens: float,
        prompt_pairs: float | None = None,
        max_output_tokens: int,
        output_tokens: int,
        ttft_s: float | None,
        generation_s: float | None,
        service_s: float | None,
    ) -> None:
        """Take one answered call in.

        Args:
            running: calls on the endpoint at the grant, this one included.
            prompt_tokens: uncached tokens to be read before its first token, queued ones included.
            prompt_pairs: their attention pairs; None: as of one uncached prompt.
            max_output_tokens: what the request allowed.
            output_tokens: what was generated.
            ttft_s: measured, or None.
            generation_s: from the first token to the last, or None.
            service_s: the whole send; used for the time per token where the split is unknown.
        """
        self._learn_length(max_output_tokens, float(output_tokens))
        if ttft_s is not None:
            pairs = pairs_of(prompt_tokens, 0.0) if prompt_pairs is None else prompt_pairs
            self.ttft.learn(prompt_tokens, pairs, float(running), ttft_s)
        if generation_s is not None and output_tokens > 1:
            self.per_token.learn(float(running), generation_s / (output_tokens - 1))
        elif ttft_s is None and service_s is not None and output_tokens > 0:
            self.per_token.learn(float(running), service_s / output_tokens)

    def _learn_length(self, max_output_tokens: int, output_tokens: float) -> None:
        lengths = self._lengths
        for key in (0, max_output_tokens.bit_length()):
            before = lengths.get(key)
            lengths[key] = (
                output_tokens if before is None else before + BLEND * (output_tokens - before)
            )

    def output_tokens(self, max_output_tokens: int) -> float:
        """Expected length of an answer, by the size of what was allowed; at most that."""
        lengths = self._lengths
        expected = lengths.get(max_output_tokens.bit_length())
        if expected is None:
            expected = lengths.get(0, PRIOR_OUTPUT_TOKENS)
        return expected if expected < max_output_tokens else float(max_output_tokens)

    def estimate(
        self,
        running: int,
        prompt_tokens: float,
        output_tokens: float,
        slowness: float = 1.0,
        prompt_pairs: float | None = None,
    ) -> Estimate:
        """What a call of `output_tokens` would take with `running` calls, itself included."""
        ttft, per_token = self.ttft, self.per_token
        ttft_known, known = ttft.samples > 0, per_token.samples > 0
        if ttft_known:
            pairs = 0.5 * prompt_tokens * prompt_tokens if prompt_pairs is None else prompt_pairs
            ttft_s = ttft.at(prompt_tokens, pairs, running) * slowness
        else:
            # A wire that never tells the first token has it inside its time per token.
            ttft_s = 0.0 if known else PRIOR_TTFT_S
        per_token_s = PRIOR_PER_TOKEN_S
        if known:
            per_token_s = (per_token.intercept + per_token.slope * running) * slowness
        total_s = ttft_s + per_token_s * output_tokens
        return Estimate(ttft_s, total_s, ttft_known, known, per_token_s)

    def line(self, output_tokens: float, *, ttft_only: bool) -> tuple[float, float, float, float]:
        """`estimate` as coefficients, for comparing many endpoints.

        They are seconds, and seconds for each prompt token, attention pair and running call;
        slowness is left out.

        Args:
            output_tokens: of the answer.
            ttft_only: to the first token, where that is known.
        """
        ttft, per_token = self.ttft, self.per_token
        known = per_token.samples > 0
        if ttft.samples:
            base_s, token_s, pair_s, running_s = ttft.coefficients()
            if ttft_only:
                return base_s, token_s, pair_s, running_s
        else:
            base_s, token_s, pair_s, running_s = 0.0 if known else PRIOR_TTFT_S, 0.0, 0.0, 0.0
        if known:
            base_s += per_token.intercept * output_tokens
            running_s += per_token.slope * output_tokens
        else:
            base_s += PRIOR_PER_TOKEN_S * output_tokens
        return base_s, token_s, pair_s, running_s

    def __repr__(self) -> str:
        return f"<Predictor ttft={self.ttft!r} per_token={self.per_token!r}>"


def blend_slowness(slowness: float, measured_s: float, expected_s: float) -> float:
    """An endpoint's slowness after one more call, kept within a sane range.

    Args:
        slowness: so far; 1.0 is as fast as its class.
        measured_s: what the call took.
        expected_s: what its class was predicted to take, slowness left out.
    """
    if expected_s <= 0.0:
        return slowness
    ratio = min(_SLOWEST, max(_FASTEST, measured_s / expected_s))
    # In logarithms, since half of the calls take longer than expected, and some by far.
    return float(slowness ** (1.0 - BLEND) * ratio**BLEND)
