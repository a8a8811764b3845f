"""The client as a context sees it: the part of `AsyncAgentCloud` that agents call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from anthropic.types import Message

from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.tiers import FleetTiers


class TextStream(Protocol):
    """An answer as it comes (`anthropic`'s message stream)."""

    @property
    def text_stream(self) -> AsyncIterator[str]:
        """The text, piece by piece."""
        ...

    async def get_final_message(self) -> Message:
        """The whole answer."""
        ...


class MessagesResource(Protocol):
    """The part of `AsyncAgentCloud.messages` that a context calls."""

    async def create(self, *, routing: Routing, **params: Any) -> Message:
        """One answer, its receipt at `.agentcloud`."""
        ...

    def stream(self, *, routing: Routing, **params: Any) -> AbstractAsyncContextManager[TextStream]:
        """One answer as a stream."""
        ...


class MessagesClient(Protocol):
    """A client that a context calls: `AsyncAgentCloud`."""

    @property
    def messages(self) -> MessagesResource:
        """The Messages API."""
        ...

    async def tiers(self) -> FleetTiers:
        """The fleet's tiers, cheapest first."""
        ...
