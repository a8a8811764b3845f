"""Pure: what an engine says of its KV cache's blocks -> which chunks of prompts it holds.

The scheduler speaks of chunks (prefix_chunks.py), the engine of blocks: runs of tokens, each hashed
with all before it. The replica sees both: a call brings its chunks and how far into the prompt
each reaches, and the engine says which tokens the prompt became. A chunk counts as held while the
last whole block within it is stored (the first block, for a chunk that is shorter than one). Where
a chunk ends among the tokens is told by proportion, so that it may be a block off.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentcloud.cluster.prefix import Change

#: Token ids as bytes, four each.
_IDS: Final = "I"
#: Prompts kept for whoever asks what is new.
_SEEN_KEPT: Final = 4096
_Step = tuple[Hashable, bytes]


class Prompt(NamedTuple):
    """A prompt's chunks.

    Attributes:
        prefix: hash of each, with all before it.
        shares: the part of the prompt up to the end of each.
    """

    prefix: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()


NO_PROMPT: Final = Prompt()


@dataclass(slots=True)
class BlockMap:
    """The blocks of one engine's cache, and the chunks that they hold.

    Fed with the engine's events and with the prompts that it served; `change` says what is new.
    """

    block_tokens: int = 0
    _next: dict[_Step, Hashable] = field(default_factory=dict)
    _step_to: dict[Hashable, _Step] = field(default_factory=dict)
    _block_of: dict[int, Hashable] = field(default_factory=dict)
    _chunks_in: dict[Hashable, set[int]] = field(default_factory=dict)
    _seen: deque[tuple[Prompt, array[int]]] = field(
        default_factory=lambda: deque(maxlen=_SEEN_KEPT)
    )
    _touched: set[int] = field(default_factory=set)
    _told: set[int] = field(default_factory=set)

    def stored(
        self,
        parent: Hashable | None,
        blocks: Sequence[Hashable],
        tokens: Sequence[int],
        block_tokens: int,
    ) -> None:
        """The engine has stored blocks that follow each other, the first one after `parent`."""
        if len(blocks) * block_tokens != len(tokens):
            return  # Some were left out (sliding windows): nothing of it makes a prefix.
        self.block_tokens = block_tokens
        ids = array(_IDS, tokens).tobytes()
        size = block_tokens * array(_IDS).itemsize
        before: Hashable = parent
        for number, block in enumerate(blocks):
            step = (before, ids[number * size : (number + 1) * size])
            self._next[step] = block
            self._step_to[block] = step
            before = block

    def removed(self, blocks: Sequence[Hashable]) -> None:
        """The engine has evicted blocks."""
        for block in blocks:
            step = self._step_to.pop(block, None)
            if step is not None and self._next.get(step) == block:
                del self._next[step]
            for chunk in self._chunks_in.pop(block, ()):
                del self._block_of[chunk]
                self._touched.add(chunk)

    def cleared(self) -> None:
        """The engine has evicted everything."""
        self._touched.update(self._block_of)
        for known in (self._next, self._step_to, self._block_of, self._chunks_in):
            known.clear()

    def saw(self, prompt: Prompt, tokens: Sequence[int]) -> None:
        """The engine has read a prompt, which became these tokens."""
        self._seen.append((prompt, array(_IDS, tokens)))

    def change(self, *, anew: bool = False) -> Change:
        """What is held since the last time and was not before, and the reverse.

        Chunks of prompts that were read and are not held are among the removed ones, though never
        told before: who sent them may take them for held.

        Args:
            anew: tell everything that is held, as to one who knows nothing.
        """
        while self._seen:
            self._place(*self._seen.popleft())
        touched, self._touched = self._touched, set()
        held = self._block_of
        if anew:
            self._told = set(held)
            return Change(tuple(held), None)
        added = tuple(chunk for chunk in touched if chunk in held and chunk not in self._told)
        removed = tuple(chunk for chunk in touched if chunk not in held)
        self._told.update(added)
        self._told.difference_update(removed)
        return Change(added, removed)

    def _place(self, prompt: Prompt, tokens: array[int]) -> None:
        """Find the blocks that hold a prompt's chunks."""
        self._touched.update(prompt.prefix)
        if not self.block_tokens:
            return
        ids, size = tokens.tobytes(), self.block_tokens * tokens.itemsize
        path: list[Hashable] = []
        before: Hashable = None
        for at in range(0, len(ids) - size + 1, size):
            block = self._next.get((before, ids[at : at + size]))
            if block is None:
                break
            path.append(block)
            before = block
        for chunk, share in zip(prompt.prefix, prompt.shares, strict=True):
            known = self._block_of.pop(chunk, None)
            if known is not None:
                self._chunks_in[known].discard(chunk)
            last = max(1, int(share * len(tokens)) // self.block_tokens)
            if last <= len(path):
                block = path[last - 1]
                self._block_of[chunk] = block
                self._chunks_in.setdefault(block, set()).add(chunk)

    def __repr__(self) -> str:
        return f"<BlockMap {len(self._step_to)} blocks, {len(self._block_of)} chunks>"
