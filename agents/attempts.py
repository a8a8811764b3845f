"""A task's one budget of extra attempts, shared by every layer that may try again."""

from __future__ import annotations

from agentcloud.cluster.errors import AttemptsExhausted


class Attempts:
    """Counts the extra attempts of one task: transport retries, output repairs, task restarts.

    The first attempt of a piece of work is free; every further one spends. So however the layers
    nest, a task never sends more than its first attempts plus `limit`.

    Args:
        limit: extra attempts that the task may make in all.
    """

    def __init__(self, limit: int = 8) -> None:
        if limit < 0:
            raise ValueError(f"attempts cannot be negative: {limit}")
        self.limit = limit
        self._used = 0

    def __repr__(self) -> str:
        return f"Attempts({self._used} of {self.limit} used)"

    @property
    def used(self) -> int:
        """Extra attempts spent so far."""
        return self._used

    @property
    def left(self) -> int:
        """Extra attempts that remain."""
        return max(0, self.limit - self._used)

    def spend(self, why: str, *, last: str | None = None) -> None:
        """Spend one extra attempt, before making it.

        Args:
            why: what is about to be tried again, for the error's line.
            last: the line of the error that made it necessary.

        Raises:
            AttemptsExhausted: none remains.
        """
        if not self.take():
            because = f" (last error: {last})" if last else ""
            raise AttemptsExhausted(
                f"no attempts left for {why}: the task's {self.limit} extra attempts are used; "
                f"raise its limit of attempts to go on{because}",
                attempts=self._used,
                last=last,
            )

    def take(self) -> bool:
        """Spend one extra attempt if one remains: how transport retries ask (`ExtraSends`)."""
        if not self.left:
            return False
        self._used += 1
        return True

    def charge(self, count: int) -> None:
        """Count attempts that were made before (by an earlier run of the task); never raises."""
        self._used += max(0, count)
