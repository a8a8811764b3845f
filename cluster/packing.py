"""Pure: calls that can wait -> packs of many, by count, by size, by time.

A pack is closed when another call would make it too large, when no call came for `linger_s`, or
`longest_s` after its first call, whatever comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pack:
    """Calls to be sent together, in the order in which they came."""

    lane: str
    keys: Sequence[str]


@dataclass(slots=True)
class _Open:
    first_s: float
    last_s: float
    size_bytes: int = 0
    keys: dict[str, int] = field(default_factory=dict)


class Packer:
    """Collects calls by lane (what may not share a pack has another lane).

    Guarantees: every key added and not removed is given out exactly once; no pack holds more than
    `max_requests`, nor more than `max_bytes` unless it is one call alone.
    """

    def __init__(
        self, *, max_requests: int, max_bytes: int, linger_s: float, longest_s: float
    ) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._linger_s = linger_s
        self._longest_s = longest_s
        self._open: dict[str, _Open] = {}
        self._full: list[tuple[str, _Open]] = []
        self._where: dict[str, _Open] = {}

    def add(self, lane: str, key: str, size_bytes: int, now_s: float) -> None:
        """Put a call into its lane's open pack, closing that first if it would grow too large."""
        pack = self._open.get(lane)
        if pack is not None and (
            len(pack.keys) >= self._max_requests or pack.size_bytes + size_bytes > self._max_bytes
        ):
            del self._open[lane]
            if pack.keys:
                self._full.append((lane, pack))
            pack = None
        if pack is None:
            pack = self._open[lane] = _Open(now_s, now_s)
        pack.keys[key] = size_bytes
        pack.size_bytes += size_bytes
        pack.last_s = now_s
        self._where[key] = pack

    def remove(self, key: str) -> bool:
        """Take a call out; False if it is in no pack that is still here."""
        pack = self._where.pop(key, None)
        if pack is None:
            return False
        pack.size_bytes -= pack.keys.pop(key)
        return True

    def take_due(self, now_s: float) -> list[Pack]:
        """The packs to be sent now; they are gone from here."""
        for lane, pack in list(self._open.items()):
            if not pack.keys:
                del self._open[lane]
            elif now_s >= self._due_s(pack):
                self._full.append((lane, self._open.pop(lane)))
        due, self._full = self._full, []
        packs = [Pack(lane, tuple(pack.keys)) for lane, pack in due if pack.keys]
        for closed in packs:
            for key in closed.keys:
                del self._where[key]
        return packs

    def next_due_s(self) -> float | None:
        """Clock time at which a pack is due, if nothing else comes; None: there is none."""
        if any(pack.keys for _, pack in self._full):
            return float("-inf")
        return min((self._due_s(pack) for pack in self._open.values() if pack.keys), default=None)

    def _due_s(self, pack: _Open) -> float:
        return min(pack.last_s + self._linger_s, pack.first_s + self._longest_s)

    def __len__(self) -> int:
        return len(self._where)

    def __repr__(self) -> str:
        return f"<Packer {len(self)} calls in {len(self._open) + len(self._full)} packs>"
