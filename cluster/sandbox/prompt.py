"""A prompt as the cache sees it: tools, system and messages as one list of blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from agentcloud.cluster.sandbox import counting

Ttl = Literal["5m", "1h"]
MAX_MARKS = 4


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """One block: `where` it stands, its tokens, the lifetime asked for if it is marked."""

    where: str
    role: str
    content: Mapping[str, Any]
    tokens: int
    ttl: Ttl | None


def prompt_blocks(params: Mapping[str, Any]) -> list[PromptBlock]:
    """The prompt's blocks in the order in which they are cached.

    A requested output schema is part of the prompt and comes first. `cache_control` at the top
    marks the last block that can be marked.
    """
    blocks = list(_blocks(params))
    automatic = params.get("cache_control")
    if automatic:
        for index in range(len(blocks) - 1, -1, -1):
            block = blocks[index]
            if block.content.get("type") not in ("thinking", "redacted_thinking"):
                if block.ttl is None:
                    blocks[index] = PromptBlock(
                        block.where, block.role, block.content, block.tokens, _ttl_of(automatic)
                    )
                break
    return blocks


def prefix_hashes(blocks: Sequence[PromptBlock], salt: str) -> list[bytes]:
    """For every block, the hash of the prompt up to and including it."""
    hashes = []
    digest = hashlib.sha256(salt.encode())
    for block in blocks:
        content = {key: value for key, value in block.content.items() if key != "cache_control"}
        digest.update(block.role.encode() + b"\0" + to_json(content) + b"\0")
        hashes.append(digest.copy().digest())
    return hashes


def count_tokens(params: Mapping[str, Any]) -> int:
    """Tokens of the whole prompt."""
    return max(1, sum(block.tokens for block in _blocks(params)))


def _blocks(params: Mapping[str, Any]) -> Iterator[PromptBlock]:
    schema = (params.get("output_config") or {}).get("format")
    if schema:
        yield PromptBlock("output_config", "schema", schema, counting.json_tokens(schema), None)
    for index, tool in enumerate(params.get("tools") or ()):
        mark = tool.get("cache_control")
        plain = {key: value for key, value in tool.items() if key != "cache_control"}
        tokens = counting.json_tokens(plain)
        yield PromptBlock(f"tools.{index}", "tools", plain, tokens, _ttl_of(mark))
    system = params.get("system")
    if system:
        yield from _content_blocks("system", "system", system, 0)
    for index, message in enumerate(params.get("messages") or ()):
        yield from _content_blocks(
            f"messages.{index}.content",
            message["role"],
            message["content"],
            counting.MESSAGE_TOKENS,
        )


def _content_blocks(
    where: str, role: str, content: Any, extra_tokens: int
) -> Iterator[PromptBlock]:
    if isinstance(content, str):
        tokens = counting.text_tokens(content) + extra_tokens
        yield PromptBlock(where, role, {"type": "text", "text": content}, tokens, None)
        return
    for index, block in enumerate(content):
        tokens = counting.block_tokens(block) + (extra_tokens if index == 0 else 0)
        yield PromptBlock(
            f"{where}.{index}", role, block, tokens, _ttl_of(block.get("cache_control"))
        )


def _ttl_of(mark: Mapping[str, Any] | None) -> Ttl | None:
    if not mark:
        return None
    return "1h" if mark.get("ttl") == "1h" else "5m"
