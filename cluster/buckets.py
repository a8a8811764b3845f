"""Pure: one rate limit as this side keeps it, and as the server's headers correct it."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

MINUTE_S: Final = 60.0
#: A call reaches its server at the latest so long after its grant: headers sent before that may
#: not count it.
ON_THE_WAY_S: Final = 0.2
_SLOT_S: Final = 0.1
#: A settlement is later than its call's end by so much: told in batches.
_SLACK_S: Final = 0.3
#: How far back headers are understood; older ones say nothing.
REMEMBERED_S: Final = 2 * MINUTE_S
#: Rounding slack of float arithmetic, far below one token.
_EPSILON: Final = 1e-6


class TokenBucket:
    """What may be used per minute, refilling continuously; `level` may go below zero.

    Our own books are exact for what we send: a call is taken out when it is granted, before its
    server can count it. Headers only bound them: the server has at most what it said, less what
    was granted since. A bucket smaller than its minute (a burst limit) is learned from when the
    server says that it will be full.
    """

    __slots__ = ("_granted", "capacity", "held", "level", "per_minute", "updated_s")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self.per_minute = float(per_minute)
        self.capacity = self.per_minute
        self.level = self.per_minute
        self.held = 0.0
        self.updated_s = now_s
        #: Slot of time -> what calls granted in it use (hold, until they are settled), in order.
        self._granted: deque[list[float]] = deque()

    def refill(self, now_s: float) -> None:
        """Bring the level up to now."""
        passed_s = now_s - self.updated_s
        if passed_s > 0:
            level = self.level + passed_s * self.per_minute / MINUTE_S
            self.level = level if level < self.capacity else self.capacity
            self.updated_s = now_s

    def clamp(self, amount: float) -> float:
        """What is really held for `amount`: a call larger than the bucket takes all of it."""
        return amount if amount < self.capacity else self.capacity

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` is there; 0.0 now."""
        if now_s > self.updated_s:
            self.refill(now_s)
        missing = (amount if amount < self.capacity else self.capacity) - self.level
        return missing * MINUTE_S / self.per_minute if missing > _EPSILON else 0.0

    def hold(self, amount: float) -> float:
        """Take an amount until the truth is told; returns what was taken."""
        amount = self.clamp(amount)
        self.level -= amount
        self.held += amount
        slot = self.updated_s // _SLOT_S
        granted = self._granted
        if granted and granted[-1][0] == slot:
            granted[-1][1] += amount
        else:
            granted.append([slot, amount])
            oldest = slot - REMEMBERED_S / _SLOT_S
            while granted[0][0] < oldest:
                granted.popleft()
        return amount

    def settle(self, held: float, used: float, granted_s: float | None = None) -> None:
        """Replace what was held, for a call granted at `granted_s`, by what was used."""
        self.held = max(0.0, self.held - held)
        self.level = min(self.capacity, self.level + held - used)
        if granted_s is None or held == used:
            return
        slot = granted_s // _SLOT_S
        for entry in reversed(self._granted):
            if entry[0] <= slot:
                if entry[0] == slot:
                    entry[1] += used - held
                return

    def granted_since(self, since_s: float) -> float:
        """What calls granted at or after a time use, or hold."""
        slot, total = since_s // _SLOT_S, 0.0
        for at, amount in reversed(self._granted):
            if at < slot:
                break
            total += amount
        return total

    def correct(
        self,
        limit: float | None,
        remaining: float | None,
        now_s: float,
        *,
        seen_s: float | None = None,
        full_in_s: float | None = None,
        raises: bool = True,
    ) -> None:
        """Let a response's headers bound the level.

        Args:
            limit: the server's limit per minute.
            remaining: what it had left, in its own counting.
            now_s: seconds of the clock.
            seen_s: when it said so; None: now.
            full_in_s: seconds after which its bucket would have been full, rounded up to one.
            raises: whether more than our books say is believed. Not of output: what calls under
                way have yet to make is in no header.
        """
        self.refill(now_s)
        if limit is not None and limit > 0 and limit != self.per_minute:
            self.capacity = self.capacity * limit / self.per_minute
            self.per_minute = limit
        if remaining is None:
            return
        if full_in_s is not None:
            size = remaining + max(0.0, full_in_s + _SLACK_S) * self.per_minute / MINUTE_S
            # A clock that is behind ours may not shrink it below what was there.
            self.capacity = max(1.0, remaining, min(self.capacity, math.ceil(size)))
            if remaining == 0:
                # A server in debt says zero too; how long it needs to fill shows how deep it is.
                debt = self.capacity - (full_in_s - 1.0) * self.per_minute / MINUTE_S
                remaining = min(0.0, debt)
        seen_s = now_s if seen_s is None else seen_s
        if now_s - seen_s <= REMEMBERED_S - MINUTE_S:
            refilled = remaining + (now_s - seen_s) * self.per_minute / MINUTE_S
            most = refilled - self.granted_since(seen_s - ON_THE_WAY_S)
            if raises:
                self.level = max(self.level, most - self.held)
            self.level = min(self.level, most)
        self.level = min(self.level, self.capacity)

    def used_up(self, for_s: float, now_s: float) -> None:
        """The server lets nothing through for so long: there is nothing before."""
        self.refill(now_s)
        self.level = min(self.level, -for_s * self.per_minute / MINUTE_S)

    def __repr__(self) -> str:
        return f"<TokenBucket {self.level:.0f}/{self.per_minute:.0f} held={self.held:.0f}>"
