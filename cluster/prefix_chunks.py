"""Pure: a request -> the chain of hashes that tells which prompts begin alike.

The prompt is written out as bytes in the order in which the API caches it (output schema, tools,
system, messages), and cut into chunks; each chunk's hash is over everything before it too. A chunk
ends at a fixed distance from the one before it, or at the end of a block where that comes in the
second half of the distance. The distance doubles every 16 chunks, so that a prompt of 400 kB has
about 75 of them. Where a chunk ends depends on nothing behind it: prompts that begin alike have
chains that begin alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from agentcloud.cluster.contracts import Params
from agentcloud.cluster.sizing import IMAGE_TOKENS, document_tokens

#: Bytes of the first chunks; a prompt of half of it has none.
STEP_BYTES: Final = 1024
_DOUBLES_EVERY: Final = 16
#: Bytes of a prompt that count as a token, as sizing.py has it.
_BYTES_PER_TOKEN: Final = 3
#: What stands between blocks: none of these bytes occurs in UTF-8, so that no text can look like
#: the end of its block, or like another kind of block.
_END: Final = b"\xf7"
_SCHEMA, _TOOL, _SYSTEM, _SETTINGS = b"\xf8", b"\xf9", b"\xfa", b"\xfb"
_TEXT, _BLOCK = b"\xfc", b"\xfd"
_ROLE: Final = b"\xfe"
_WITHIN: Final = b"\xff"
#: Of the request's settings those that the prompt, or the cache of its messages, depends on.
_RENDERED: Final = ("tool_choice", "thinking")


class Place(NamedTuple):
    """Where a block stands in a request: `messages`, which of them, which block of it."""

    part: str
    item: int = 0
    block: int = 0


class Chunks(NamedTuple):
    """A prompt's chain.

    Attributes:
        hashes: of each chunk, with all before it; positive and below 2**63.
        tokens: up to the end of each chunk, in proportion to the prompt's.
    """

    hashes: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()


_NONE: Final = Chunks()


def prefix_chunks(params: Params, input_tokens: int) -> Chunks:
    """The chain of a request's prompt.

    Args:
        params: the request.
        input_tokens: `sizing.estimated_input_tokens` of it.
    """
    if input_tokens * _BYTES_PER_TOKEN < STEP_BYTES // 2:
        return _NONE
    digest = blake2b(digest_size=8)
    hashes: list[int] = []
    ends: list[int] = []
    at = last = 0
    step = STEP_BYTES
    for _, part in written(params):
        start, end = 0, at + len(part)
        while end - last >= step // 2:
            last = min(last + step, end)
            digest.update(part[start : last - at])
            start = last - at
            ends.append(last)
            hashes.append(int.from_bytes(digest.digest(), "little") >> 1)
            step = STEP_BYTES << (len(ends) // _DOUBLES_EVERY)
        digest.update(part[start:])
        at = end
    return Chunks(tuple(hashes), tuple(input_tokens * end // at for end in ends))


def places(params: Params, chunks: int) -> list[tuple[Place, int]]:
    """The blocks that lie wholly within the first chunks of a prompt, in order.

    Returns:
        Each with the tokens of the prompt up to its end, estimated from its bytes.
    """
    passed: list[tuple[Place, int]] = []
    at = last = count = 0
    step = STEP_BYTES
    for place, part in written(params):
        at += len(part)
        passed.append((place, at))
        while at - last >= step // 2 and count < chunks:
            last = min(last + step, at)
            count += 1
            step = STEP_BYTES << (count // _DOUBLES_EVERY)
        if count == chunks:
            break
    return [(place, end // _BYTES_PER_TOKEN) for place, end in passed if end <= last]


def written(params: Params) -> Iterator[tuple[Place, bytes]]:
    """The prompt's blocks as bytes, each with its end; marks of the cache are no part of them.

    Different prompts are written differently, but for what is rendered alike: text, and a list of
    one block of it.
    """
    if schema := (params.get("output_config") or {}).get("format"):
        yield Place("output_config"), _SCHEMA + _json(schema) + _END
    for index, tool in enumerate(params.get("tools") or ()):
        yield Place("tools", index), _TOOL + _json(_unmarked(tool)) + _END
    system = params.get("system")
    if isinstance(system, str):
        yield Place("system"), _SYSTEM + _TEXT + _text(system) + _END
    else:
        for index, block in enumerate(system or ()):
            yield Place("system", index), _SYSTEM + _of_block(block) + _END
    settings = {key: params[key] for key in _RENDERED if params.get(key) is not None}
    if settings:
        yield Place("settings"), _SETTINGS + _json(settings) + _END
    for index, message in enumerate(params.get("messages") or ()):
        content = message.get("content")
        front = _ROLE + _text(str(message.get("role"))) + _END
        if isinstance(content, str):
            yield Place("messages", index), front + _TEXT + _text(content) + _END
            continue
        for number, block in enumerate(content or ()):
            yield Place("messages", index, number), front + _of_block(block) + _END
            front = b""
        if front:
            yield Place("messages", index), front


def _of_block(block: Any) -> bytes:
    if not isinstance(block, Mapping):
        return _BLOCK + _json(block)
    kind = block.get("type")
    if kind == "text" and not block.get("citations"):
        return _TEXT + _text(str(block.get("text")))
    plain = _unmarked(block)
    if kind == "image" or kind == "document":
        # By its digest, which is written as often as its tokens would be text.
        source = plain.pop("source", None)
        data = _json(source)
        stands_for = blake2b(data, digest_size=16).hexdigest().encode()
        size = _BYTES_PER_TOKEN * (IMAGE_TOKENS if kind == "image" else document_tokens(source))
        return _BLOCK + _json(plain) + _WITHIN + (stands_for * (1 + size // len(stands_for)))
    if kind == "tool_result" and isinstance(plain.get("content"), list | tuple):
        parts = [_of_block(part) + _END for part in plain.pop("content")]
        return _BLOCK + _json(plain) + _WITHIN + b"".join(parts)
    return _BLOCK + _json(plain)


def _unmarked(block: Any) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != "cache_control"}


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=str).encode()
