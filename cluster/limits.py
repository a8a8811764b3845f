"""Pure: rate limits per account and model family, and concurrency that adapts to them.

One `AccountLimits` serves every process that uses the account, because it lives in the scheduler:
checked in each process's memory, N processes would get N times the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agentcloud.cluster.config import Limits
from agentcloud.cluster.contracts import TokenUsage

MINUTE_S: Final = 60.0
#: Rest after a 429 that names neither `retry-after` nor a reset.
DEFAULT_COOLDOWN_S: Final = 1.0
#: Rounding slack of float arithmetic, far below one token.
_EPSILON: Final = 1e-6
_PREFIX: Final = "anthropic-ratelimit-"


class TokenBucket:
    """What may be used per minute, refilling continuously; `level` may go below zero.

    Caveat: a server may forbid bursts that its minute's limit allows; its 429 then teaches us.
    """

    __slots__ = ("held", "level", "per_minute", "updated_s")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self.per_minute = float(per_minute)
        self.level = self.per_minute
        self.held = 0.0
        self.updated_s = now_s

    def refill(self, now_s: float) -> None:
        """Bring the level up to now."""
        passed_s = now_s - self.updated_s
        if passed_s > 0:
            level = self.level + passed_s * self.per_minute / MINUTE_S
            self.level = level if level < self.per_minute else self.per_minute
            self.updated_s = now_s

    def clamp(self, amount: float) -> float:
        """What is really held for `amount`: a call larger than the bucket takes all of it."""
        return amount if amount < self.per_minute else self.per_minute

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` is there; 0.0 now."""
        self.refill(now_s)
        missing = self.clamp(amount) - self.level
        return missing * MINUTE_S / self.per_minute if missing > _EPSILON else 0.0

    def hold(self, amount: float) -> float:
        """Take the worst case until the truth is told; returns what was taken."""
        amount = self.clamp(amount)
        self.level -= amount
        self.held += amount
        return amount

    def settle(self, held: float, used: float) -> None:
        """Replace what was held by what was used."""
        self.held = max(0.0, self.held - held)
        self.level = min(self.per_minute, self.level + held - used)

    def correct(self, limit: float | None, remaining: float | None, now_s: float) -> None:
        """Believe the server, less what is in flight: it may not have counted that yet."""
        self.refill(now_s)
        if limit is not None and limit > 0:
            self.per_minute = limit
        if remaining is not None:
            self.level = remaining - self.held
        self.level = min(self.level, self.per_minute)

    def __repr__(self) -> str:
        return f"<TokenBucket {self.level:.0f}/{self.per_minute:.0f} held={self.held:.0f}>"


@dataclass(slots=True)
class Hold:
    """What one lease holds at its account."""

    requests: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0


class AccountLimits:
    """Requests, input and output tokens per minute of one account and model family.

    Unset limits are unlimited until a response tells them. Cache reads are not counted.
    """

    __slots__ = ("cooled_until_s", "input_tokens", "name", "output_tokens", "requests")

    def __init__(self, name: str, limits: Limits, now_s: float) -> None:
        self.name = name
        self.requests = _bucket(limits.requests_per_minute, now_s)
        self.input_tokens = _bucket(limits.input_tokens_per_minute, now_s)
        self.output_tokens = _bucket(limits.output_tokens_per_minute, now_s)
        self.cooled_until_s = 0.0

    def wait_s(self, input_tokens: int, output_tokens: int, now_s: float) -> float:
        """Seconds until a call of this worst case may be sent; 0.0 now."""
        wait_s = max(0.0, self.cooled_until_s - now_s)
        for bucket, amount in (
            (self.requests, 1.0),
            (self.input_tokens, float(input_tokens)),
            (self.output_tokens, float(output_tokens)),
        ):
            if bucket is not None:
                wait_s = max(wait_s, bucket.wait_s(amount, now_s))
        return wait_s

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

    def hold(self, input_tokens: int, output_tokens: int) -> Hold:
        """Hold the worst case of a call; `wait_s` must have said 0.0."""
        return Hold(
            self.requests.hold(1.0) if self.requests else 0.0,
            self.input_tokens.hold(float(input_tokens)) if self.input_tokens else 0.0,
            self.output_tokens.hold(float(output_tokens)) if self.output_tokens else 0.0,
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
        elif sent:
            used_in, used_out = hold.input_tokens, hold.output_tokens
        else:
            used_in = used_out = 0.0
        for bucket, held, used in (
            (self.requests, hold.requests, 1.0),
            (self.input_tokens, hold.input_tokens, used_in),
            (self.output_tokens, hold.output_tokens, used_out),
        ):
            if bucket is not None:
                bucket.refill(now_s)
                # A bucket that a response created after the hold was taken holds nothing of it.
                bucket.settle(held, used if held else 0.0)

    def correct(self, headers: Mapping[str, str], now_s: float) -> None:
        """Believe a response's `anthropic-ratelimit-*` headers (lower case).

        The combined `tokens` limit repeats the tightest of the others and is not kept apart.
        """
        self.requests = _corrected(self.requests, headers, "requests", now_s)
        self.input_tokens = _corrected(self.input_tokens, headers, "input-tokens", now_s)
        self.output_tokens = _corrected(self.output_tokens, headers, "output-tokens", now_s)

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
    resets = []
    for name in ("requests", "input-tokens", "output-tokens", "tokens"):
        reset = headers.get(f"{_PREFIX}{name}-reset")
        if wall_s is not None and reset and _number(headers, name, "remaining") == 0:
            try:
                resets.append(datetime.fromisoformat(reset).timestamp() - wall_s)
            except ValueError:
                continue  # Not RFC 3339: the default cooldown applies.
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


def _corrected(
    bucket: TokenBucket | None, headers: Mapping[str, str], name: str, now_s: float
) -> TokenBucket | None:
    limit = _number(headers, name, "limit")
    if bucket is None:
        if limit is None or limit <= 0:
            return None
        bucket = TokenBucket(limit, now_s)
    bucket.correct(limit, _number(headers, name, "remaining"), now_s)
    return bucket
