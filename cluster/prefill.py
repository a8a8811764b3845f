"""Pure: time to first token from the prompt work in front of it, learned online.

A prompt of `tokens` uncached tokens behind `cached` ones costs a term for each token and one for
each pair of a token and a token before it (attention), so the work of a prompt is

    tokens, pairs = tokens x (cached + tokens / 2)

and an engine that computes prompts first come first served needs, for all that is queued and the
call's own, `base + a x tokens + b x pairs + c x running` seconds to the first token. The four are
fitted by least squares with exponential forgetting on relative errors, so that short prompts count
as much as long ones, and none is negative (coordinate descent on the normal equations: Franc et
al., Sequential Coordinate-wise Algorithm for Non-negative Least Squares, 2005). A running median of
measured / predicted takes out the bias that squares have on skewed times.
"""

from __future__ import annotations

import math
from typing import Final

#: Weight kept by older calls at each new one: a memory of about 200 calls.
_FORGET: Final = 0.995
#: Sweeps over the coefficients at each call; they start where the last ones ended.
_SWEEPS: Final = 4
#: Keeps the descent steady where two features say the same.
_RIDGE: Final = 1.0 + 1e-6
#: Step of the running median, in logarithms; 2% a call.
_MEDIAN_STEP: Final = 0.02
_MEDIAN_RANGE: Final = 0.7
#: No first token is taken to come sooner when errors are made relative.
_LEAST_S: Final = 1e-3
#: From so many calls on, only every fourth is learned from: it costs more than choosing does.
_ALL_OF: Final = 200
_EVERY: Final = 4
_FEATURES: Final = 4

Vector = tuple[float, float, float, float]


def pairs_of(tokens: float, cached: float) -> float:
    """Pairs of a token and one before it, of a prompt with `cached` tokens in front."""
    return tokens * (cached + 0.5 * tokens)


class RunningMedian:
    """A factor on predictions with which half of what is measured lies above them."""

    __slots__ = ("_log", "factor")

    def __init__(self) -> None:
        self._log = 0.0
        self.factor = 1.0

    def learn(self, measured: float, predicted: float) -> None:
        """Take one measurement in, and what was predicted with the factor so far."""
        self._log += _MEDIAN_STEP if measured > predicted else -_MEDIAN_STEP
        self._log = max(-_MEDIAN_RANGE, min(_MEDIAN_RANGE, self._log))
        self.factor = math.exp(self._log)


class PrefillModel:
    """base + a tokens + b pairs + c running, fitted to measured times to first token."""

    __slots__ = ("_gram", "_median", "_right", "_seen", "bias", "samples", "theta")

    def __init__(self) -> None:
        self.samples = 0
        self.theta = [0.0] * _FEATURES
        self.bias = 1.0
        self._seen = 0
        self._median = RunningMedian()
        self._gram = [[0.0] * _FEATURES for _ in range(_FEATURES)]
        self._right = [0.0] * _FEATURES

    def at(self, tokens: float, pairs: float, running: float) -> float:
        """Predicted time to first token, seconds."""
        base, per_token, per_pair, per_running = self.theta
        return self.bias * (
            base + per_token * tokens * 1e-3 + per_pair * pairs * 1e-6 + per_running * running * 0.1
        )

    def coefficients(self) -> tuple[float, float, float, float]:
        """Seconds: base, for a token, for a pair, for a running call."""
        base, per_token, per_pair, per_running = self.theta
        bias = self.bias
        return (
            bias * base,
            bias * per_token * 1e-3,
            bias * per_pair * 1e-6,
            bias * per_running * 0.1,
        )

    def work_s(self, tokens: float, pairs: float) -> float:
        """Seconds that the engine computes for so much prompt, nothing else."""
        return self.bias * (self.theta[1] * tokens * 1e-3 + self.theta[2] * pairs * 1e-6)

    def learn(self, tokens: float, pairs: float, running: float, ttft_s: float) -> None:
        """Take one measurement in."""
        self._seen += 1
        if self.samples >= _ALL_OF and self._seen % _EVERY:
            return
        if self.samples:
            self._median.learn(ttft_s, self.at(tokens, pairs, running))
            self.bias = self._median.factor
        self.samples += 1
        self._take_in((1.0, tokens * 1e-3, pairs * 1e-6, running * 0.1), max(_LEAST_S, ttft_s))
        self._solve()

    def _take_in(self, x: Vector, ttft_s: float) -> None:
        """Add a call to the normal equations, its error relative to what it took."""
        weight = 1.0 / (ttft_s * ttft_s)
        right = self._right
        for row, line in enumerate(self._gram):
            factor = weight * x[row]
            right[row] = right[row] * _FORGET + factor * ttft_s
            for column in range(_FEATURES):
                line[column] = line[column] * _FORGET + factor * x[column]

    def _solve(self) -> None:
        """Least squares without negative terms, by coordinate descent from the last solution."""
        theta, right = self.theta, self._right
        for _ in range(_SWEEPS):
            for row, line in enumerate(self._gram):
                own = line[row]
                if own > 0.0:
                    rest = right[row] - (
                        line[0] * theta[0]
                        + line[1] * theta[1]
                        + line[2] * theta[2]
                        + line[3] * theta[3]
                    )
                    theta[row] = max(0.0, theta[row] + rest / (own * _RIDGE))

    def __repr__(self) -> str:
        base, token, pair, running = self.theta
        return (
            f"<PrefillModel {base:.4g}+{token * 1e-3:.3g}/token+{pair * 1e-6:.3g}/pair"
            f"+{running * 0.1:.3g}/running n={self.samples}>"
        )


class PrefillQueue:
    """Prompt work that one endpoint still has to do, drained as time passes.

    It is what was granted, less what the engine has had the time to compute; reports of the
    endpoint correct it.
    """

    __slots__ = ("at_s", "pairs", "tokens")

    def __init__(self) -> None:
        self.tokens = 0.0
        self.pairs = 0.0
        self.at_s = 0.0

    def drain(self, model: PrefillModel, now_s: float) -> None:
        """Bring it up to now."""
        passed_s = now_s - self.at_s
        if not self.tokens or passed_s <= 0.0:
            return
        self.at_s = now_s
        work_s = model.work_s(self.tokens, self.pairs)
        if passed_s >= work_s:
            self.tokens = self.pairs = 0.0
        else:
            left = 1.0 - passed_s / work_s
            self.tokens *= left
            self.pairs *= left

    def add(self, tokens: float, pairs: float, starts_s: float) -> None:
        """A call was granted.

        Args:
            tokens: of its prompt that are not cached.
            pairs: of its attention.
            starts_s: when an idle queue begins to work on it: an engine takes new prompts in
                between its steps.
        """
        if not self.tokens:
            self.at_s = starts_s
        self.tokens += tokens
        self.pairs += pairs

    def correct(self, tokens: int, now_s: float, *, foreign: bool) -> None:
        """Take a report in.

        An engine counts a prompt whole, what its cache holds included, until the last of it is
        read (vLLM's `get_num_queued_tokens`): the report is never too low, and what it says beyond
        what is taken to be left is on average half true.

        Args:
            tokens: prompt tokens that the endpoint says are queued.
            now_s: when it said so; `drain` must have been called for it.
            foreign: it has calls that were not granted here, of which only it knows.
        """
        left = float(tokens)
        if left > self.tokens and not foreign:
            left = 0.5 * (self.tokens + left)
        self.pairs = self.pairs * left / self.tokens if self.tokens else 0.0
        self.tokens = left
        self.at_s = now_s

    def __repr__(self) -> str:
        return f"<PrefillQueue {self.tokens:.0f} tokens>"
