"""Answers of models as they are recorded: the message and its receipt, as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from anthropic.types import Message
from pydantic import TypeAdapter
from pydantic_core import from_json

from agentcloud.cluster.contracts import Receipt
from agentcloud.cluster.message import with_receipt

_RECEIPT: Final = TypeAdapter(Receipt)


def to_record(message: Message, receipt: Receipt | None) -> bytes:
    """An answer as JSON."""
    told = b"null" if receipt is None else _RECEIPT.dump_json(receipt)
    said = message.model_dump_json(by_alias=True, exclude_unset=True)
    return b'{"message":%b,"receipt":%b}' % (said.encode(), told)


def from_record(data: bytes) -> Message:
    """The answer that was recorded; its receipt says so (`cached`)."""
    parsed = from_json(data)
    # As the client itself makes messages: what a newer API adds is kept.
    message = Message.construct(**parsed["message"])
    if parsed["receipt"] is None:
        return message
    receipt = _RECEIPT.validate_python(parsed["receipt"])
    return with_receipt(message, replace(receipt, cached=True))
