"""Pure: `cache_control` marks placed for the caller where a prompt's beginning will be used again.

A hosted model caches only up to a mark. Writing costs more than plain input (1.25 times for five
minutes), reading less (a tenth), so a mark pays when the chance of another use within the five
minutes is above

    (write - input) / (input - read)            0.25 / 0.9 = 28% by the usual prices

Of a beginning that nobody has used that chance is taken to be nil. Of one that was used within the
last five minutes it is taken as one half (one use in one chance, by the rule of succession): so it
is written on its second use and read from the third. A caller's own marks stay, count towards the
four that a request may have, and nothing is placed before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentcloud.cluster.catalog import HostedEntry
from agentcloud.cluster.contracts import Params
from agentcloud.cluster.prefix_chunks import Place, places

#: Marks that a request may have.
MOST_MARKS: Final = 4
#: The chance that a beginning which was used in the last five minutes is used in the next.
REUSE_CHANCE: Final = 0.5
_MARK: Final = {"type": "ephemeral"}
_UNMARKABLE: Final = frozenset({"thinking", "redacted_thinking"})
#: In the order in which the prompt is cached.
_PARTS: Final = ("tools", "system", "messages")


def reuse_pays(entry: HostedEntry, prompt_tokens: int) -> bool:
    """Whether marks on a beginning that was used a moment ago pay at a model."""
    prices = entry.price_list(None)
    if prices is None:
        return False
    tier = prices.tier(prompt_tokens)
    more, less = tier.cache_write_5m - tier.input, tier.input - tier.cache_read
    return less > 0 and float(more / less) < REUSE_CHANCE


def with_marks(params: dict[str, Any], chunks: int, min_tokens: int) -> dict[str, Any]:
    """The request with marks on a beginning that is used again; nothing is changed in place.

    They go to the end of the tools, of the system prompt, and of the last block of the messages
    that lies within it.

    Args:
        params: the request.
        chunks: chunks of the prompt that were used a moment ago (prefix_chunks.py).
        min_tokens: the model caches nothing shorter.
    """
    if params.get("cache_control"):
        return params  # The API is asked to place the mark itself.
    own = list(_own_marks(params))
    last: dict[str, Place] = {}
    for place, tokens in places(params, chunks):
        if place.part in _PARTS and tokens >= min_tokens and _is_markable(params, place):
            last[place.part] = place
    after = max((_order(place) for place in own), default=None)
    wanted = [place for place in last.values() if after is None or _order(place) > after]
    # Of too many the later ones: what comes before is read with them.
    room = MOST_MARKS - len(own)
    wanted = sorted(wanted, key=_order)[-room:] if room > 0 else []
    marked = dict(params)
    for place in wanted:
        _mark(marked, place)
    return marked


def _own_marks(params: Params) -> Iterator[Place]:
    for part in ("tools", "system"):
        blocks = params.get(part)
        if not isinstance(blocks, str):
            for index, block in enumerate(blocks or ()):
                for _ in range(_marks_in(block)):
                    yield Place(part, index)
    for index, message in enumerate(params.get("messages") or ()):
        content = message.get("content")
        if not isinstance(content, str):
            for number, block in enumerate(content or ()):
                for _ in range(_marks_in(block)):
                    yield Place("messages", index, number)


def _marks_in(block: Any) -> int:
    if not isinstance(block, Mapping):
        return 0
    within = block.get("content")
    inner = within if isinstance(within, list | tuple) else ()
    return bool(block.get("cache_control")) + sum(_marks_in(each) for each in inner)


def _is_markable(params: Params, place: Place) -> bool:
    block = _block(params, place)
    if isinstance(block, str):
        return bool(block)
    kind = block.get("type")
    return kind not in _UNMARKABLE and (kind != "text" or bool(block.get("text")))


def _block(params: Params, place: Place) -> Any:
    if place.part == "messages":
        content = params["messages"][place.item].get("content")
        return content if isinstance(content, str) else content[place.block] if content else ""
    blocks = params[place.part]
    return blocks if isinstance(blocks, str) else blocks[place.item]


def _order(place: Place) -> tuple[int, int, int]:
    return (_PARTS.index(place.part), place.item, place.block)


def _mark(params: dict[str, Any], place: Place) -> None:
    if place.part == "messages":
        messages = list(params["messages"])
        message = messages[place.item]
        content = _marked(message["content"], place.block)
        messages[place.item] = {**message, "content": content}
        params["messages"] = messages
    else:
        params[place.part] = _marked(params[place.part], place.item)


def _marked(blocks: Any, which: int) -> list[Any]:
    if isinstance(blocks, str):
        return [{"type": "text", "text": blocks, "cache_control": _MARK}]
    marked = list(blocks)
    marked[which] = {**marked[which], "cache_control": _MARK}
    return marked
