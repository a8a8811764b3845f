"""Pure: rate limits per account and model family, and concurrency that adapts to them.

One `AccountLimits` serves every process that uses the account, because it lives in the scheduler:
checked in each process's memory, N processes would get N times the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agentcloud.cluster.buckets import MINUTE_S, TokenBucket
from agentcloud.cluster.config_models import Limits
from agentcloud.cluster.contracts import TokenUsage
from agentcloud.cluster.usual import UsualUse

#: Rest after a 429 that names neither `retry-after` nor a reset.
DEFAULT_COOLDOWN_S: Final = 1.0
_PREFIX: Final = "anthropic-ratelimit-"


@dataclass(slots=True)
class Hold:
    """What one lease holds at its account, and what it was held for."""

    requests: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    granted_s: float = 0.0
    estimated_tokens: float = 0.0
    max_output_tokens: float = 0.0
    prefix: int | None = None


class AccountLimits:
    """Requests, input and output tokens per minute of one account and model family.

    Unset limits are unlimited until a response tells them. Cache reads are not counted. A call is
    let through when its whole prompt and its usual output are there.
    """

    __slots__ = ("cooled_until_s", "input_tokens", "name", "output_tokens", "requests", "usual")

    def __init__(self, name: str, limits: Limits, now_s: float, *, empty: bool = False) -> None:
        """Start with full buckets, or with empty ones where others may have used them."""
        self.name = name
        self.requests = _bucket(limits.requests_per_minute, now_s)
        self.input_tokens = _bucket(limits.input_tokens_per_minute, now_s)
        self.output_tokens = _bucket(limits.output_tokens_per_minute, now_s)
        self.usual = UsualUse()
        self.cooled_until_s = 0.0
        if empty:
            for bucket in (self.requests, self.input_tokens, self.output_tokens):
                if bucket is not None:
                    bucket.level = 0.0

    def wait_s(self, input_tokens: int, output_tokens: int, now_s: float) -> float:
        """Seconds until a call of these sizes may be sent; 0.0 now."""
        requests, inputs, outputs = self.requests, self.input_tokens, self.output_tokens
        waits = [self.cooled_until_s - now_s, 0.0]
        if requests is not None:
            waits.append(requests.wait_s(1.0, now_s))
        if inputs is not None:
            waits.append(inputs.wait_s(float(input_tokens), now_s))
        if outputs is not None:
            waits.append(outputs.wait_s(self.usual.output_tokens(output_tokens), now_s))
        return max(waits)

    def period_s(self, input_tokens: float, output_tokens: float) -> float:
        """Seconds between calls of this size that the limits sustain; 0.0 when unlimited."""
        period_s = 0.0
        for bucket, amount in (
            (self.requests, 1.0),
            (self.input_tokens, input_tokens),
            (self.output_tokens, output_tokens),
        ):
            if bucket is not None:
                period_s = max(period_s, amount * MINUTE_S / bucket.per_minute)
        return period_s

    def hold(
        self,
        input_tokens: int,
        output_tokens: int,
        now_s: float = 0.0,
        prefix: int | None = None,
    ) -> Hold:
        """Hold what a call will use; `wait_s` must have said 0.0.

        Args:
            input_tokens: its whole prompt, estimated.
            output_tokens: its `max_tokens`.
            now_s: seconds of the clock.
            prefix: hash of the prompt's first chunk; None: it is short.
        """
        requests, inputs, outputs = self.requests, self.input_tokens, self.output_tokens
        for bucket in (requests, inputs, outputs):
            if bucket is not None:
                bucket.refill(now_s)
        usual = self.usual
        return Hold(
            requests.hold(1.0) if requests else 0.0,
            inputs.hold(usual.input_tokens(input_tokens, prefix, now_s)) if inputs else 0.0,
            outputs.hold(usual.output_tokens(output_tokens)) if outputs else 0.0,
            now_s,
            input_tokens,
            output_tokens,
            prefix,
        )

    def settle(self, hold: Hold, usage: TokenUsage | None, *, sent: bool, now_s: float) -> None:
        """Replace a hold by the truth.

        Args:
            hold: what the lease held.
            usage: the answer's tokens; None: the worst case counts, if it was sent.
            sent: whether the server took the call (a refused one used a request, no tokens).
            now_s: seconds of the clock.
        """
        if usage is not None:
            used_in = float(usage.input_tokens + usage.cache_write_tokens)
            used_out = float(usage.output_tokens)
            if usage.output_tokens:
                self.usual.learn(
                    max_output_tokens=hold.max_output_tokens,
                    output_tokens=used_out,
                    estimated_tokens=hold.estimated_tokens,
                    counted_tokens=used_in,
                    cached_tokens=usage.cache_read_tokens,
                    prefix=hold.prefix,
                    now_s=now_s,
                )
        elif sent:
            used_in, used_out = hold.estimated_tokens, hold.max_output_tokens
        else:
            used_in = used_out = 0.0
        for bucket, held, used in (
            (self.requests, hold.requests, 1.0),
            (self.input_tokens, hold.input_tokens, used_in),
            (self.output_tokens, hold.output_tokens, used_out),
        ):
            if bucket is not None:
                bucket.refill(now_s)
                # A bucket that a response created after the hold was taken holds nothing of it:
                # the server had counted the request and its input, but not yet all of its output.
                known = bool(held) or bucket is self.output_tokens
                bucket.settle(held, used if known else 0.0, hold.granted_s)

    def correct(
        self,
        headers: Mapping[str, str],
        now_s: float,
        *,
        age_s: float = 0.0,
        wall_s: float | None = None,
    ) -> None:
        """Let a response's `anthropic-ratelimit-*` headers (lower case) bound what is left.

        The combined `tokens` limit repeats the tightest of the others and is not kept apart.

        Args:
            headers: of the response.
            now_s: seconds of the clock.
            age_s: seconds since they were sent: a stream's come with its first token.
            wall_s: now, seconds since 1970, to read the resets' dates by; None: unknown.
        """
        sent_wall_s = None if wall_s is None else wall_s - age_s

        def corrected(bucket: TokenBucket | None, name: str, raises: bool) -> TokenBucket | None:
            limit = _number(headers, name, "limit")
            if bucket is None:
                if limit is None or limit <= 0:
                    return None
                bucket = TokenBucket(limit, now_s)
            remaining = _number(headers, name, "remaining")
            full_in_s = _reset_in_s(headers, name, sent_wall_s)
            bucket.correct(
                *(limit, remaining, now_s),
                seen_s=now_s - age_s,
                full_in_s=full_in_s,
                raises=raises,
            )
            return bucket

        self.requests = corrected(self.requests, "requests", True)
        self.input_tokens = corrected(self.input_tokens, "input-tokens", True)
        self.output_tokens = corrected(self.output_tokens, "output-tokens", False)

    def refused(self, headers: Mapping[str, str], rest_s: float, now_s: float) -> None:
        """A call met a 429: rest, and expect nothing left of what it says is used up."""
        self.cool(now_s + rest_s)
        for bucket, name in (
            (self.requests, "requests"),
            (self.input_tokens, "input-tokens"),
            (self.output_tokens, "output-tokens"),
        ):
            if bucket is not None and _number(headers, name, "remaining") == 0:
                bucket.used_up(rest_s, now_s)

    def cool(self, until_s: float) -> None:
        """Send nothing before `until_s`; a later, shorter cooldown never shortens it."""
        self.cooled_until_s = max(self.cooled_until_s, until_s)

    def headroom(self, now_s: float) -> dict[str, float | None]:
        """What is left of each limit as a fraction of it; None where unlimited."""
        out: dict[str, float | None] = {}
        for name in ("requests", "input_tokens", "output_tokens"):
            bucket: TokenBucket | None = getattr(self, name)
            if bucket is None:
                out[name] = None
            else:
                bucket.refill(now_s)
                out[name] = max(0.0, bucket.level / bucket.per_minute)
        return out

    def __repr__(self) -> str:
        return (
            f"<AccountLimits {self.name} requests={self.requests} input={self.input_tokens} "
            f"output={self.output_tokens} cooled_until={self.cooled_until_s:.3f}>"
        )


class AdaptiveConcurrency:
    """Calls in flight at one endpoint: shrinks on rate limits only, once an episode.

    An episode is all calls granted before the last shrink: their 429s say nothing new. It grows
    again by an eighth (at least one) after a full clean round, that is `limit` calls granted and
    answered since the last change without a 429 among them, and never beyond `maximum`.
    """

    __slots__ = ("_clean", "_grown_s", "_shrunk_s", "limit", "maximum")

    SHRINK: Final = 0.7

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.limit = maximum
        self._clean = 0
        self._shrunk_s = float("-inf")
        self._grown_s = float("-inf")

    def on_rate_limited(self, granted_s: float, now_s: float) -> bool:
        """A call granted at `granted_s` met a 429; returns whether the limit shrank."""
        self._clean = 0
        if granted_s <= self._shrunk_s:
            return False
        self.limit = max(1, int(self.limit * self.SHRINK))
        self._shrunk_s = now_s
        return True

    def on_ok(self, granted_s: float, now_s: float) -> bool:
        """A call granted at `granted_s` was answered; returns whether the limit grew."""
        if self.limit >= self.maximum or granted_s < max(self._shrunk_s, self._grown_s):
            return False
        self._clean += 1
        if self._clean < self.limit:
            return False
        self.limit = min(self.maximum, self.limit + max(1, self.limit // 8))
        self._clean = 0
        self._grown_s = now_s
        return True

    def __repr__(self) -> str:
        return f"<AdaptiveConcurrency {self.limit}/{self.maximum} clean={self._clean}>"


def cooldown_s(
    retry_after_s: float | None, headers: Mapping[str, str], wall_s: float | None
) -> float:
    """How long an account rests after a 429, seconds.

    `retry-after` in full; without it, until the reset of a limit with nothing remaining (at most
    a minute, against clocks that differ); else `DEFAULT_COOLDOWN_S`.
    """
    if retry_after_s is not None:
        return max(0.0, retry_after_s)
    resets = [
        reset_s
        for name in ("requests", "input-tokens", "output-tokens", "tokens")
        if _number(headers, name, "remaining") == 0
        and (reset_s := _reset_in_s(headers, name, wall_s)) is not None
    ]
    if resets:
        return min(MINUTE_S, max(DEFAULT_COOLDOWN_S, *resets))
    return DEFAULT_COOLDOWN_S


def _bucket(per_minute: int | None, now_s: float) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, now_s)


def _number(headers: Mapping[str, str], name: str, what: str) -> float | None:
    try:
        return float(headers[f"{_PREFIX}{name}-{what}"])
    except (KeyError, ValueError):
        return None


def _reset_in_s(headers: Mapping[str, str], name: str, wall_s: float | None) -> float | None:
    reset = headers.get(f"{_PREFIX}{name}-reset")
    if wall_s is None or not reset:
        return None
    try:
        return datetime.fromisoformat(reset).timestamp() - wall_s
    except ValueError:
        return None  # Not RFC 3339.
