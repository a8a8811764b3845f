"""Processes that ask the scheduler: when each last spoke, and where its late decisions go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from agentcloud.cluster.decisions import Decision


@dataclass(slots=True)
class Holder:
    """One process.

    Attributes:
        seen_s: when it last spoke.
        outbox: decisions that it has not been told.
        written: its last exchange whose settlements are on disk.
        writing: writes under way for it.
    """

    seen_s: float
    outbox: list[Decision] = field(default_factory=list)
    written: int = 0
    writing: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _wake: asyncio.Event | None = None

    def listen(self, wake: asyncio.Event) -> None:
        """Have an event of the running loop set when there is something to tell."""
        self._loop, self._wake = asyncio.get_running_loop(), wake

    def listens(self, wake: asyncio.Event) -> bool:
        """Whether that event is the last it gave."""
        return self._wake is wake

    def signal(self) -> None:
        """There is something to tell; from any thread."""
        if self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)


class Holders:
    """All of them; used under the actor's lock."""

    def __init__(self, timeout_s: float) -> None:
        """Know nobody.

        Args:
            timeout_s: one that is silent for so long is dead.
        """
        self.timeout_s = timeout_s
        self._known: dict[str, Holder] = {}

    def heard(self, name: str, now_s: float) -> Holder:
        """A process spoke."""
        holder = self._known.get(name)
        if holder is None:
            holder = self._known[name] = Holder(now_s)
        holder.seen_s = now_s
        return holder

    def knows(self, name: str, holder: Holder) -> bool:
        """Whether this is still the process's record."""
        return self._known.get(name) is holder

    def drop(self, name: str) -> None:
        """Forget a process; whoever listens for it is woken."""
        holder = self._known.pop(name, None)
        if holder is not None:
            holder.signal()

    def post(self, decisions: Iterable[Decision]) -> None:
        """Put decisions where their processes find them; those of dead ones are dropped."""
        posted: dict[str, Holder] = {}
        for decision in decisions:
            if (holder := self._known.get(decision.holder)) is not None:
                holder.outbox.append(decision)
                posted[decision.holder] = holder
        for holder in posted.values():
            holder.signal()

    def silent(self, now_s: float) -> list[str]:
        """Those that are dead."""
        limit_s = now_s - self.timeout_s
        return [name for name, holder in self._known.items() if holder.seen_s <= limit_s]

    def next_death_s(self) -> float | None:
        """When the first of them is dead if it stays silent; None: there is nobody."""
        seen = [holder.seen_s for holder in self._known.values()]
        return min(seen) + self.timeout_s if seen else None

    def silent_s(self, now_s: float) -> dict[str, dict[str, float]]:
        """How long each has been silent, JSON-able."""
        return {name: {"silent_s": now_s - each.seen_s} for name, each in self._known.items()}

    def __repr__(self) -> str:
        return f"<Holders {len(self._known)}>"
