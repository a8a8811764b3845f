"""Pure: which endpoint of a class holds which prompt prefix in its cache.

A request tells its prompt as a chain of hashes, one for each chunk of its prefix, each hash over
everything before it; equal hashes mean equal prefixes. An endpoint is taken to hold what it was
sent, until it says otherwise (vLLM's KV block events, by way of the replica) or, where it tells
nothing, until newer prompts have filled its memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agentcloud.cluster.pool import EndpointState

#: Holders of the longest match that a choice compares.
MOST_HOLDERS: Final = 3
_LOOKED_AT: Final = 16


class Holding:
    """What one endpoint holds: hashes in order of use, oldest first.

    Attributes:
        told: it tells what it stores and evicts; nothing is forgotten by guessing.
    """

    __slots__ = ("capacity", "hashes", "told")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hashes: OrderedDict[int, None] = OrderedDict()
        self.told = False


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

    def insert(self, state: EndpointState, prefix: Sequence[int]) -> None:
        """An endpoint was sent a prompt: its chunks will be cached, the first one last to go."""
        holding = state.holding
        hashes = holding.hashes
        for chunk in reversed(prefix):
            if chunk in hashes:
                hashes.move_to_end(chunk)
            else:
                hashes[chunk] = None
                self._holders.setdefault(chunk, {})[state] = None
        if not holding.told:
            while len(hashes) > holding.capacity:
                self._forget(state, hashes.popitem(last=False)[0])

    def told(self, state: EndpointState, added: Iterable[int], removed: Iterable[int]) -> None:
        """An endpoint tells what it has stored and evicted."""
        holding = state.holding
        holding.told = True
        for chunk in added:
            if chunk not in holding.hashes:
                holding.hashes[chunk] = None
                self._holders.setdefault(chunk, {})[state] = None
        for chunk in removed:
            if chunk in holding.hashes:
                del holding.hashes[chunk]
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
