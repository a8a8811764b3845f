"""An answer with its receipt: `message.agentcloud`."""

from __future__ import annotations

from typing import TypeVar

from anthropic.types import Message, ParsedMessage
from pydantic import PrivateAttr

from agentcloud.cluster.contracts import Receipt

T = TypeVar("T")


class RoutedMessage(Message):
    """An `anthropic.types.Message` that knows who served it.

    The receipt is not part of the message's data: dumping it, or sending its content back as the
    next turn, gives what the API gives. It survives pickling.
    """

    _receipt: Receipt = PrivateAttr()

    @property
    def agentcloud(self) -> Receipt:
        """Which endpoint and model served, why, at what cost, and where the time went."""
        return self._receipt


class RoutedParsedMessage(ParsedMessage[T]):
    """The same for what the stream helper and `parse()` give."""

    _receipt: Receipt = PrivateAttr()

    @property
    def agentcloud(self) -> Receipt:
        """Which endpoint and model served, why, at what cost, and where the time went."""
        return self._receipt


def with_receipt(message: Message, receipt: Receipt) -> RoutedMessage:
    """The message with its receipt; its parts are shared, not copied."""
    routed = RoutedMessage.__new__(RoutedMessage)
    # As pydantic's own shallow copy does; constructing anew would cost more than the whole call.
    object.__setattr__(routed, "__dict__", dict(message.__dict__))
    object.__setattr__(routed, "__pydantic_extra__", message.__pydantic_extra__)
    object.__setattr__(routed, "__pydantic_fields_set__", set(message.__pydantic_fields_set__))
    object.__setattr__(routed, "__pydantic_private__", {"_receipt": receipt})
    return routed


def parsed_with_receipt(message: ParsedMessage[T], receipt: Receipt) -> RoutedParsedMessage[T]:
    """The same for a parsed message."""
    routed: RoutedParsedMessage[T] = RoutedParsedMessage.__new__(RoutedParsedMessage)
    object.__setattr__(routed, "__dict__", dict(message.__dict__))
    object.__setattr__(routed, "__pydantic_extra__", message.__pydantic_extra__)
    object.__setattr__(routed, "__pydantic_fields_set__", set(message.__pydantic_fields_set__))
    object.__setattr__(routed, "__pydantic_private__", {"_receipt": receipt})
    return routed
