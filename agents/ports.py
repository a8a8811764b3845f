"""What agents call: the client as a context sees it, and a sender as its loops see that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from anthropic.types import Message

from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.errors import ContextTooLong
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


class Sender(Protocol):
    """One model call with everything agentcloud adds: routing, record, usage, attempts."""

    async def send(
        self,
        params: dict[str, Any],
        *,
        keep_too_long: Callable[[ContextTooLong], bool] | None = None,
    ) -> Message:
        """Send a request and wait for its answer.

        Args:
            params: the request.
            keep_too_long: whether a request that is too long is recorded as that, so that what
                follows from it is the same in a resumed task.
        """
        ...

    async def record(
        self, kind: str, name: str, content: Any, make: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Make a step that is no call of a model, or give what is recorded of it."""
        ...

    def spend_attempt(self, why: str, last: str | None = None) -> None:
        """Spend one of the task's extra attempts.

        Raises:
            AttemptsExhausted: none remains.
        """
        ...
