"""Answers of models as they are recorded: the message and its receipt, as JSON.

That a request was too long is recorded in an answer's place where the task went on from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from anthropic.types import Message
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from agentcloud.cluster.contracts import Receipt
from agentcloud.cluster.errors import ContextTooLong
from agentcloud.cluster.message import with_receipt

_RECEIPT: Final = TypeAdapter(Receipt)


def to_record(message: Message, receipt: Receipt | None) -> bytes:
    """An answer as JSON."""
    told = b"null" if receipt is None else _RECEIPT.dump_json(receipt)
    said = message.model_dump_json(by_alias=True, exclude_unset=True)
    return b'{"message":%b,"receipt":%b}' % (said.encode(), told)


def too_long_record(error: ContextTooLong) -> bytes:
    """That a request was too long, as JSON."""
    said = {name: getattr(error, name) for name in ("context_tokens", "prompt_tokens", "endpoint")}
    return to_json({"too_long": {"message": str(error), **said}})


def from_record(data: bytes) -> Message:
    """The answer that was recorded; its receipt says so (`cached`).

    Raises:
        ContextTooLong: that is what was recorded.
    """
    parsed = from_json(data)
    if "too_long" in parsed:
        raise ContextTooLong(**parsed["too_long"])
    # As the client itself makes messages: what a newer API adds is kept.
    message = Message.construct(**parsed["message"])
    if parsed["receipt"] is None:
        return message
    receipt = _RECEIPT.validate_python(parsed["receipt"])
    return with_receipt(message, replace(receipt, cached=True))
