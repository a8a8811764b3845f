"""Pure: what replicas say of their caches, on its way to the scheduler.

Changes only mean something one after another. Where one may have been lost (a report that timed
out, a scheduler that restarted), the replica is asked for everything anew.
"""

from __future__ import annotations

from agentcloud.cluster.prefix import Change


class PrefixReports:
    """Changes of the replicas' caches that the scheduler has not been told yet."""

    def __init__(self) -> None:
        self._changes: dict[str, list[Change | None]] = {}
        self._in_step: set[str] = set()

    def wants_all(self, name: str) -> bool:
        """Whether a replica is to tell all that it holds, and not just what is new."""
        return name not in self._in_step

    def take(self, name: str, change: Change | None) -> None:
        """A replica has told what is new (None: it does not know)."""
        self._in_step.add(name)
        waiting = self._changes.setdefault(name, [])
        if change is None or change.removed is None:
            waiting.clear()  # Whatever came before, it says more.
        if change is None or change.added or change.removed is None or change.removed:
            waiting.append(change)

    def lost(self, name: str) -> None:
        """A report may be missing, or the replica is another one now."""
        self._in_step.discard(name)
        self._changes.pop(name, None)

    def lost_all(self) -> None:
        """The scheduler may have missed what it was told, or is another one now."""
        self._in_step.clear()
        self._changes.clear()

    def pop(self) -> dict[str, list[Change | None]]:
        """What the scheduler is to be told now, in order."""
        changes, self._changes = self._changes, {}
        return {name: each for name, each in changes.items() if each}

    def __repr__(self) -> str:
        return f"<PrefixReports of {len(self._in_step)} replicas>"
