"""Prompt caching as it is billed. Pure: the caller says what time it is.

- A mark (`cache_control`) makes the prompt up to it an entry. Prompts under the model's minimum
  are silently not cached.
- A prompt reads the longest entry that ends at a marked block or at one of the 19 before it.
- What lies between the entry read and the last mark is written: at the 1 hour price as far as the
  last `1h` mark, at the 5 minute price after it. What comes after the last mark is plain input.
- An entry can be read from the moment the first answer begins to stream (`commit`), by the same
  account on the same model, until its lifetime has passed since it was last used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from agentcloud.cluster.sandbox.prompt import PromptBlock, prefix_hashes

LOOK_BACK_BLOCKS = 20
TTL_S = {"5m": 300.0, "1h": 3600.0}
_PRUNE_ABOVE = 20_000


@dataclass(frozen=True, slots=True)
class PromptUsage:
    """How a prompt's tokens are billed, and the entries it leaves behind.

    Attributes:
        input_tokens: at the plain price.
        read_tokens: from the cache.
        write_5m_tokens: written for 5 minutes.
        write_1h_tokens: written for 1 hour.
        entries: hash of each prefix to keep -> its lifetime in seconds.
    """

    input_tokens: int
    read_tokens: int = 0
    write_5m_tokens: int = 0
    write_1h_tokens: int = 0
    entries: dict[bytes, float] = field(default_factory=dict)

    @property
    def write_tokens(self) -> int:
        """Tokens written to the cache."""
        return self.write_5m_tokens + self.write_1h_tokens

    @property
    def total_tokens(self) -> int:
        """The whole prompt."""
        return self.input_tokens + self.read_tokens + self.write_tokens

    @property
    def limited_tokens(self) -> int:
        """What counts against the account's input limit."""
        return self.input_tokens + self.write_tokens

    def scaled_to(self, total_tokens: int) -> PromptUsage:
        """The same split of a prompt that another tokenizer counts as `total_tokens`."""
        if total_tokens == self.total_tokens:
            return self
        if not (self.read_tokens or self.write_tokens):
            return PromptUsage(total_tokens, entries=self.entries)
        factor = total_tokens / self.total_tokens
        read = round(self.read_tokens * factor)
        write_5m = round(self.write_5m_tokens * factor)
        write_1h = round(self.write_1h_tokens * factor)
        plain = max(0, total_tokens - read - write_5m - write_1h)
        return PromptUsage(plain, read, write_5m, write_1h, self.entries)

    def as_dict(self, output_tokens: int, thinking_tokens: int = 0) -> dict[str, Any]:
        """The `usage` object of a message."""
        usage: dict[str, Any] = {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": self.write_tokens,
            "cache_read_input_tokens": self.read_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.write_5m_tokens,
                "ephemeral_1h_input_tokens": self.write_1h_tokens,
            },
            "output_tokens": output_tokens,
            "service_tier": "standard",
        }
        if thinking_tokens:
            usage["output_tokens_details"] = {"thinking_tokens": thinking_tokens}
        return usage


@dataclass(slots=True)
class _Entry:
    ttl_s: float
    expires_s: float


class PromptCache:
    """Which prefixes are cached, and until when."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}

    def __repr__(self) -> str:
        return f"<PromptCache {len(self._entries)} entries>"

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def look_up(
        self, blocks: Sequence[PromptBlock], *, salt: str, min_tokens: int, now_s: float
    ) -> PromptUsage:
        """How the prompt is billed at `now_s`; `salt` tells accounts and models apart."""
        total = max(1, sum(block.tokens for block in blocks))
        if all(block.ttl is None for block in blocks):
            return PromptUsage(total)
        upto = list(accumulate(block.tokens for block in blocks))
        marks = [i for i, block in enumerate(blocks) if block.ttl and upto[i] >= min_tokens]
        if not marks:
            return PromptUsage(total)
        hashes = prefix_hashes(blocks, salt)
        entries = {hashes[i]: TTL_S[blocks[i].ttl or "5m"] for i in marks}
        hit = self._longest_entry(marks, hashes, now_s)
        read = 0
        if hit is not None:
            read = upto[hit]
            # Reading an entry renews it, whether or not its block is marked this time.
            entries.setdefault(hashes[hit], self._entries[hashes[hit]].ttl_s)
        last = upto[marks[-1]]
        hour = max((upto[i] for i in marks if blocks[i].ttl == "1h"), default=0)
        write_1h = max(0, hour - read)
        return PromptUsage(
            input_tokens=total - last,
            read_tokens=read,
            write_5m_tokens=last - read - write_1h,
            write_1h_tokens=write_1h,
            entries=entries,
        )

    def commit(self, usage: PromptUsage, now_s: float) -> None:
        """The answer has begun to stream: its entries can be read from now on."""
        for key, ttl_s in usage.entries.items():
            entry = self._entries.get(key)
            if entry is None or entry.expires_s <= now_s:
                self._entries[key] = _Entry(ttl_s, now_s + ttl_s)
            else:
                entry.ttl_s = max(entry.ttl_s, ttl_s)
                entry.expires_s = max(entry.expires_s, now_s + entry.ttl_s)
        if len(self._entries) > _PRUNE_ABOVE:
            live = {key: entry for key, entry in self._entries.items() if entry.expires_s > now_s}
            self._entries = live

    def _longest_entry(
        self, marks: Sequence[int], hashes: Sequence[bytes], now_s: float
    ) -> int | None:
        for mark in reversed(marks):
            for index in range(mark, max(-1, mark - LOOK_BACK_BLOCKS), -1):
                entry = self._entries.get(hashes[index])
                if entry is not None and entry.expires_s > now_s:
                    return index
        return None
