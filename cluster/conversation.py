"""Pure: thinking blocks when a conversation moves from one server to another.

A thinking block is accepted only by the server that signed it. So every signature that we pass on
carries its signer: `agentcloud:<12 hex digits>:<signature>`. On the way out a block that the other
side signed gets its own signature back, and any other thinking block is dropped. Signatures
without a mark are Anthropic's own (the default server's answers stay as they came, so histories
made with the bare client, or carried on with it, work unchanged).

The rule needs no memory: a conversation may be stored, resumed in another process, or shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from anthropic.types import RawMessageStreamEvent

from agentcloud.cluster.contracts import EndpointKind, EndpointSpec

#: The signer of unmarked signatures.
ANTHROPIC: Final = ""
_MARK: Final = "agentcloud:"
#: Kind of block -> the field that only its signer can read.
_SEALED: Final = {"thinking": "signature", "redacted_thinking": "data"}


def signer_of(spec: EndpointSpec, base_url: str | None) -> str:
    """Who signs at an endpoint: the mark of its signatures, `""` for Anthropic's own server.

    Args:
        spec: the endpoint.
        base_url: of its account; None: Anthropic's own server.
    """
    if spec.kind is EndpointKind.HOSTED and base_url is None:
        return ANTHROPIC
    # Replicas of one model are one signer; so are the models of one server.
    who = f"local:{spec.model}" if spec.kind is EndpointKind.LOCAL else f"server:{base_url}"
    return f"{_MARK}{hashlib.sha256(who.encode()).hexdigest()[:12]}:"


def marked(value: str, signer: str) -> str:
    """A signature as it is handed to the caller."""
    return f"{signer}{value}" if value else value


def mark_message(content: Sequence[Any], signer: str) -> None:
    """Mark the signatures of an answer's content blocks, in place."""
    if signer == ANTHROPIC:
        return
    for block in content:
        field = _SEALED.get(block.type)
        if field is not None:
            setattr(block, field, marked(getattr(block, field) or "", signer))


def mark_event(event: RawMessageStreamEvent, signer: str) -> None:
    """Mark the signatures in one event of a streamed answer, in place."""
    if signer == ANTHROPIC:
        return
    if event.type == "content_block_start":
        mark_message((event.content_block,), signer)
    elif event.type == "content_block_delta" and event.delta.type == "signature_delta":
        event.delta.signature = marked(event.delta.signature, signer)


def for_signer(messages: Sequence[Mapping[str, Any]], signer: str) -> list[Mapping[str, Any]]:
    """The conversation as the server of `signer` accepts it.

    Nothing is changed in place. A turn that held only thinking of others is left out.
    """
    sent: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if (
            message.get("role") != "assistant"
            or isinstance(content, str)
            or not any(block.get("type") in _SEALED for block in content or ())
        ):
            sent.append(message)
            continue
        kept = [own for block in content or () if (own := _own(block, signer)) is not None]
        if kept:
            sent.append({**message, "content": kept})
    return sent


def _own(block: Mapping[str, Any], signer: str) -> Mapping[str, Any] | None:
    """The block as its signer issued it; None if another did."""
    field = _SEALED.get(block.get("type", ""))
    if field is None:
        return block
    value = block.get(field) or ""
    if signer == ANTHROPIC:
        return None if value.startswith(_MARK) else block
    return {**block, field: value.removeprefix(signer)} if value.startswith(signer) else None
