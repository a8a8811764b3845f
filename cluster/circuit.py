"""Pure: an endpoint's health by failures in a row; cooldowns, and one probe at a time."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

#: Failures in a row that take an endpoint out of rotation.
FAILURES_TO_OPEN: Final = 3
FIRST_COOLDOWN_S: Final = 1.0
LONGEST_COOLDOWN_S: Final = 60.0


class Standing(StrEnum):
    """Whether an endpoint may be given calls."""

    UP = "up"
    COOLING = "cooling"
    PROBING = "probing"
    DOWN = "down"
    UNUSABLE = "unusable"


#: Looked up often: a member of an enumeration takes six times as long to get at.
UP: Final = Standing.UP


class Circuit:
    """Up -> cooling after three failures in a row -> one probe -> up, or cooling twice as long.

    Only calls granted after the cooldown ended speak for the endpoint as it is now: late failures
    of older calls do not lengthen it, and late successes do not end it. `down` and `unusable` end
    only by registering the endpoint again.
    """

    __slots__ = ("_cooldown_s", "failures", "standing", "until_s", "why")

    def __init__(self) -> None:
        self.standing = Standing.UP
        self.failures = 0
        self.until_s = 0.0
        self.why = ""
        self._cooldown_s = FIRST_COOLDOWN_S

    def admits(self, inflight: int, limit: int, now_s: float) -> bool:
        """Whether one more call may be granted."""
        if self.standing is UP:
            return inflight < limit
        return self.standing is Standing.COOLING and now_s >= self.until_s

    @property
    def is_answering(self) -> bool:
        """Whether it is in rotation with all its slots."""
        return self.standing is UP

    def on_grant(self) -> None:
        """A call was granted: after a cooldown it is the probe."""
        if self.standing is Standing.COOLING:
            self.standing = Standing.PROBING

    def on_ok(self, granted_s: float) -> None:
        """A call was answered, or refused by an endpoint that is well."""
        if self.standing is UP:
            self.failures = 0
        elif self._is_probe(granted_s):
            self.standing = Standing.UP
            self.failures = 0
            self.why = ""
            self._cooldown_s = FIRST_COOLDOWN_S

    def on_nothing(self, granted_s: float) -> None:
        """A call ended without telling anything (cancelled): another may probe."""
        if self._is_probe(granted_s):
            self.standing = Standing.COOLING

    def on_failure(self, why: str, granted_s: float, now_s: float, rest_s: float | None) -> None:
        """A call failed by the endpoint's fault.

        Args:
            why: kind of the error.
            granted_s: when the call was granted.
            now_s: now.
            rest_s: the rest that the server asked for; it is obeyed at the first failure.
        """
        if self.standing is UP:
            if granted_s < self.until_s and not rest_s:
                return  # Of a call from before the last cooldown: it has recovered since.
            self.failures += 1
            if self.failures >= FAILURES_TO_OPEN or rest_s:
                self._open(why, now_s, rest_s)
        elif self._is_probe(granted_s):
            self.failures += 1
            self._open(why, now_s, rest_s)
        elif rest_s and self.standing is Standing.COOLING:
            self.until_s = max(self.until_s, now_s + rest_s)

    def take_out(self, standing: Standing, why: str) -> None:
        """Take it out of rotation until it is registered again."""
        if self.standing is not Standing.UNUSABLE:
            self.standing = standing
            self.why = why

    def _is_probe(self, granted_s: float) -> bool:
        return self.standing is Standing.PROBING and granted_s >= self.until_s

    def _open(self, why: str, now_s: float, rest_s: float | None) -> None:
        self.standing = Standing.COOLING
        self.why = f"{why}, {self.failures} in a row"
        self.until_s = max(self.until_s, now_s + max(self._cooldown_s, rest_s or 0.0))
        self._cooldown_s = min(LONGEST_COOLDOWN_S, self._cooldown_s * 2.0)

    def tell(self, now_s: float) -> str:
        """Its standing in words."""
        if self.standing is UP:
            return "up"
        if self.standing is Standing.COOLING:
            return f"cooling for {max(0.0, self.until_s - now_s):.3g} s ({self.why})"
        return f"{self.standing} ({self.why})"

    def __repr__(self) -> str:
        return f"<Circuit {self.standing} failures={self.failures} until={self.until_s:.3f}>"
