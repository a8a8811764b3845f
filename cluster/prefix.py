"""Pure: which endpoint of a class holds which prompt prefix in its cache.

A request tells its prompt as a chain of hashes, one for each chunk of its prefix, each hash over
everything before it; equal hashes mean equal prefixes. An endpoint is taken to hold what it was
sent, until it says otherwise (vLLM's KV block events, by way of the replica) or, where it tells
nothing, until newer prompts have filled its memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from agentcloud.cluster.endpoint import EndpointState

#: Holders of the longest match that a choice compares.
MOST_HOLDERS: Final = 3
_LOOKED_AT: Final = 16
#: An endpoint that tells is remembered to hold so many times what it has room for, at most.
_UNTOLD: Final = 4


class Change(NamedTuple):
    """What an endpoint has stored and evicted since it last told; `removed` None: all else."""

    added: Iterable[int]
    removed: Iterable[int] | None


class Holding:
    """What one endpoint holds: hashes in order of use, oldest first, with the time of it.

    Attributes:
        told: it tells what it stores and evicts; nothing is forgotten by guessing.
        ttl_s: what was not used for so long is gone; None: as long as there is room.
    """

    __slots__ = ("capacity", "hashes", "told", "ttl_s")

    def __init__(self, capacity: int, ttl_s: float | None = None) -> None:
        self.capacity = capacity
        self.ttl_s = ttl_s
        self.hashes: OrderedDict[int, float] = OrderedDict()
        self.told = False

    @property
    def most(self) -> int:
        """Chunks kept: of an endpoint that tells, what it never confirmed goes some time too."""
        return _UNTOLD * self.capacity if self.told else self.capacity


class PrefixIndex:
    """Chunk hash -> the members of a class that hold it."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        self._holders: dict[int, dict[EndpointState, None]] = {}

    def longest(self, prefix: Sequence[int]) -> tuple[int, list[EndpointState]]:
        """The longest prefix that anyone holds: how many chunks, and the least busy holders."""
        holders = self._holders
        if not prefix or prefix[0] not in holders:
            return 0, []
        # Whoever holds a chunk holds those before it, so the last one held is found by halving.
        low, high = 1, len(prefix)
        while low < high:
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in holders:
                low = middle
            else:
                high = middle - 1
        found: list[EndpointState] = []
        for state in holders[prefix[low - 1]]:
            found.append(state)
            if len(found) == _LOOKED_AT:
                break
        found.sort(key=lambda state: state.inflight)
        return low, found[:MOST_HOLDERS]

    @staticmethod
    def depth(state: EndpointState, prefix: Sequence[int]) -> int:
        """How many chunks of a prefix one endpoint holds, from the front."""
        held = state.holding.hashes
        if not prefix or prefix[0] not in held:
            return 0
        low, high = 1, len(prefix)
        while low < high:
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in held:
                low = middle
            else:
                high = middle - 1
        return low

    def insert(self, state: EndpointState, prefix: Sequence[int], now_s: float) -> None:
        """An endpoint was sent a prompt: its chunks will be cached, the first one last to go."""
        holding = state.holding
        hashes = holding.hashes
        for chunk in reversed(prefix):
            if chunk in hashes:
                hashes.move_to_end(chunk)
            else:
                self._holders.setdefault(chunk, {})[state] = None
            hashes[chunk] = now_s
        most = holding.most
        while len(hashes) > most:
            self._forget(state, hashes.popitem(last=False)[0])

    def forget_old(self, state: EndpointState, now_s: float) -> None:
        """Forget what an endpoint has not used for longer than it keeps things."""
        holding = state.holding
        hashes = holding.hashes
        while holding.ttl_s is not None and hashes:
            chunk, used_s = next(iter(hashes.items()))
            if now_s - used_s < holding.ttl_s:
                return
            del hashes[chunk]
            self._forget(state, chunk)

    def told(self, state: EndpointState, change: Change | None, now_s: float) -> None:
        """An endpoint tells what it has stored and evicted; None: it cannot tell (any more)."""
        holding = state.holding
        holding.told = change is not None
        if change is None:
            return
        hashes = holding.hashes
        if change.removed is None:
            self.drop(state)
        for chunk in change.added:
            if chunk not in hashes:
                hashes[chunk] = now_s
                self._holders.setdefault(chunk, {})[state] = None
        for chunk in change.removed or ():
            if chunk in hashes:
                del hashes[chunk]
                self._forget(state, chunk)

    def drop(self, state: EndpointState) -> None:
        """An endpoint is gone, or its cache is."""
        for chunk in state.holding.hashes:
            self._forget(state, chunk)
        state.holding.hashes.clear()

    def _forget(self, state: EndpointState, chunk: int) -> None:
        held = self._holders.get(chunk)
        if held is not None:
            held.pop(state, None)
            if not held:
                del self._holders[chunk]

    def __repr__(self) -> str:
        return f"<PrefixIndex {len(self._holders)} chunks>"
