"""Token buckets of one account and model family. Pure: the caller says what time it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from agentcloud.cluster.sandbox.settings import RateLimits


class Bucket:
    """A bucket that refills continuously at `limit_per_minute` up to its capacity.

    Its level may go below zero: output tokens are counted when they are made, and a debt must be
    refilled before the next call is let in.
    """

    def __init__(self, limit_per_minute: int, burst_s: float, now_s: float) -> None:
        self.limit_per_minute = limit_per_minute
        self._per_s = limit_per_minute / 60.0
        # A bucket of less than one unit would never let anything in.
        self.capacity = max(1.0, self._per_s * burst_s)
        self._level = self.capacity
        self._at_s = now_s

    def __repr__(self) -> str:
        return f"<Bucket {self._level:g}/{self.capacity:g}, {self.limit_per_minute}/min>"

    def level(self, now_s: float) -> float:
        """Units available at `now_s`; negative while in debt."""
        if now_s > self._at_s:
            refilled = self._level + (now_s - self._at_s) * self._per_s
            self._level = min(self.capacity, refilled)
            self._at_s = now_s
        return self._level

    def can_hold(self, amount: float) -> bool:
        """Whether `amount` could ever be taken at once."""
        return amount <= self.capacity

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` can be taken; infinite if it never can."""
        if not self.can_hold(amount):
            return math.inf
        return max(0.0, amount - self.level(now_s)) / self._per_s

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount`, into debt if need be."""
        self._level = self.level(now_s) - amount

    def full_in_s(self, now_s: float) -> float:
        """Seconds until the bucket is full."""
        return (self.capacity - self.level(now_s)) / self._per_s


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call was not let in: `dimension` is short for `wait_s` seconds (inf: for ever)."""

    dimension: str
    limit_per_minute: int
    wait_s: float

    @property
    def retry_after_s(self) -> int:
        """Whole seconds for the `retry-after` header; a call too large for its bucket gets 60."""
        return 60 if math.isinf(self.wait_s) else max(1, math.ceil(self.wait_s))


class AccountLimits:
    """The three buckets of one account and model family."""

    def __init__(self, limits: RateLimits, now_s: float) -> None:
        def bucket(per_minute: int | None) -> Bucket | None:
            return None if per_minute is None else Bucket(per_minute, limits.burst_s, now_s)

        self.requests = bucket(limits.requests_per_minute)
        self.input_tokens = bucket(limits.input_tokens_per_minute)
        self.output_tokens = bucket(limits.output_tokens_per_minute)

    def __repr__(self) -> str:
        return (
            f"<AccountLimits requests={self.requests} "
            f"input={self.input_tokens} output={self.output_tokens}>"
        )

    def admit(self, input_tokens: int, now_s: float) -> Refusal | None:
        """Take one request and its input, or nothing at all and say why not.

        Output is counted as it is made; a call gets in while at least one output token is left.
        """
        wanted = (
            ("requests", self.requests, 1),
            ("input tokens", self.input_tokens, input_tokens),
            ("output tokens", self.output_tokens, 1),
        )
        # The dimension that takes longest is the one to wait for.
        worst: Refusal | None = None
        for dimension, bucket, amount in wanted:
            if bucket is None:
                continue
            wait_s = bucket.wait_s(amount, now_s)
            if wait_s > 0 and (worst is None or wait_s > worst.wait_s):
                worst = Refusal(dimension, bucket.limit_per_minute, wait_s)
        if worst is not None:
            return worst
        if self.requests is not None:
            self.requests.take(1, now_s)
        if self.input_tokens is not None:
            self.input_tokens.take(input_tokens, now_s)
        return None

    def take_input(self, tokens: int, now_s: float) -> None:
        """Correct the input by `tokens` (may be negative) once it is known exactly."""
        if self.input_tokens is not None and tokens:
            self.input_tokens.take(tokens, now_s)

    def take_output(self, tokens: int, now_s: float) -> None:
        """Count tokens that were generated."""
        if self.output_tokens is not None and tokens:
            self.output_tokens.take(tokens, now_s)

    def remaining(self, now_s: float) -> dict[str, int | None]:
        """What is left of each dimension; None is unlimited."""
        return {
            name: None if bucket is None else max(0, math.floor(bucket.level(now_s)))
            for name, bucket in (
                ("requests", self.requests),
                ("input_tokens", self.input_tokens),
                ("output_tokens", self.output_tokens),
            )
        }

    def headers(self, now_s: float, wall_s: float) -> dict[str, str]:
        """The `anthropic-ratelimit-*` headers; `wall_s` is Unix time at `now_s`.

        Unlimited dimensions have none. `tokens` is input and output together, as far as limited.
        """
        headers: dict[str, str] = {}

        def put(name: str, buckets: list[Bucket]) -> None:
            if not buckets:
                return
            left = sum(max(0, math.floor(bucket.level(now_s))) for bucket in buckets)
            full_in_s = max(bucket.full_in_s(now_s) for bucket in buckets)
            prefix = f"anthropic-ratelimit-{name}-"
            headers[prefix + "limit"] = str(sum(bucket.limit_per_minute for bucket in buckets))
            headers[prefix + "remaining"] = str(left)
            headers[prefix + "reset"] = rfc3339(wall_s + full_in_s)

        put("requests", [self.requests] if self.requests else [])
        tokens = [bucket for bucket in (self.input_tokens, self.output_tokens) if bucket]
        put("tokens", tokens)
        put("input-tokens", [self.input_tokens] if self.input_tokens else [])
        put("output-tokens", [self.output_tokens] if self.output_tokens else [])
        return headers


def rfc3339(unix_s: float) -> str:
    """Unix time as the API writes it, to the whole second that is not before it."""
    return datetime.fromtimestamp(math.ceil(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
