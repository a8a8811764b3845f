"""`AgentCloud`: what `anthropic.Anthropic` is, over a whole fleet."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable
from concurrent.futures import CancelledError
from typing import Any, Literal, Self, overload

import httpx2
from anthropic import NotGiven, not_given
from anthropic.types import MessageTokensCount
from typing_extensions import TypeVar

from agentcloud.cluster.client_async import AsyncAgentCloud, with_format
from agentcloud.cluster.client_stream import EventStream, RoutedMessageStreamManager
from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.message import RoutedMessage, RoutedParsedMessage

#: Type of a parsed output; None where `stream` is asked for none.
T = TypeVar("T", default=None)


class BackgroundLoop:
    """An event loop in a thread of its own, which ends with its last owner."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(
            target=_serve, args=(self._loop,), name="agentcloud-client", daemon=True
        )
        thread.start()
        self._stop = weakref.finalize(self, _stop, self._loop, thread)

    def run(self, work: Awaitable[T]) -> T:
        """Wait for `work` on the loop; an interrupt cancels it.

        Raises:
            BaseException: whatever `work` raised.
        """
        future = asyncio.run_coroutine_threadsafe(_awaited(work), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
        except CancelledError:
            raise RuntimeError("the client was closed during the call") from None

    def close(self) -> None:
        """End the thread; its unfinished work is cancelled."""
        self._stop()


class Messages:
    """`client.messages`, without an event loop."""

    def __init__(self, client: AgentCloud) -> None:
        self._client = client

    @overload
    def create(
        self, *, routing: Routing | None = None, stream: Literal[True], **params: Any
    ) -> EventStream: ...

    @overload
    def create(
        self, *, routing: Routing | None = None, stream: Literal[False] = False, **params: Any
    ) -> RoutedMessage: ...

    def create(
        self, *, routing: Routing | None = None, stream: bool = False, **params: Any
    ) -> RoutedMessage | EventStream:
        """As `AsyncMessages.create`."""
        loop, inner = self._client.loop, self._client.inner.messages
        if stream is True:
            events = loop.run(inner.create(routing=routing, stream=True, **params))
            return EventStream(events, loop)
        message: RoutedMessage = loop.run(inner.create(routing=routing, **params))
        return message

    def stream(
        self,
        *,
        routing: Routing | None = None,
        output_format: type[T] | NotGiven = not_given,
        **params: Any,
    ) -> RoutedMessageStreamManager[T]:
        """As `AsyncMessages.stream`, with `with` in place of `async with`."""
        kept: Any = output_format
        opened = self._client.inner.messages.create(
            routing=routing, stream=True, **with_format(params, output_format)
        )
        return RoutedMessageStreamManager(opened, self._client.loop, output_format=kept)

    def parse(
        self, *, output_format: type[T], routing: Routing | None = None, **params: Any
    ) -> RoutedParsedMessage[T]:
        """As `AsyncMessages.parse`."""
        inner = self._client.inner.messages
        return self._client.loop.run(
            inner.parse(output_format=output_format, routing=routing, **params)
        )

    def count_tokens(self, *, routing: Routing | None = None, **params: Any) -> MessageTokensCount:
        """As `AsyncMessages.count_tokens`."""
        inner = self._client.inner.messages
        return self._client.loop.run(inner.count_tokens(routing=routing, **params))


class AgentCloud:
    """Drop-in for `anthropic.Anthropic`; arguments as of `AsyncAgentCloud`.

    Calls run on an event loop in a thread of the client's own. Close it, or use it in a `with`
    block, to close its connections; otherwise they end with the process.
    """

    def __init__(
        self,
        inference: Inference | None = None,
        *,
        address: str | None = None,
        routing: Routing | None = None,
        timeout: float | httpx2.Timeout | NotGiven | None = not_given,
        max_retries: int | None = None,
        **ignored: Any,
    ) -> None:
        self.inner = AsyncAgentCloud(
            inference,
            address=address,
            routing=routing,
            timeout=timeout,
            max_retries=max_retries,
            **ignored,
        )
        self.loop = BackgroundLoop()
        self.messages = Messages(self)

    def __repr__(self) -> str:
        return f"AgentCloud({self.inner!r})"

    def with_routing(self, routing: Routing) -> Self:
        """The same client with other routing."""
        return self._with(self.inner.with_routing(routing))

    def with_options(
        self,
        *,
        timeout: float | httpx2.Timeout | NotGiven | None = not_given,
        max_retries: int | None = None,
        **ignored: Any,
    ) -> Self:
        """The same client with another timeout or number of retries."""
        return self._with(
            self.inner.with_options(timeout=timeout, max_retries=max_retries, **ignored)
        )

    def close(self) -> None:
        """Close what this client connected, and its thread."""
        self.loop.run(self.inner.close())
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _with(self, inner: AsyncAgentCloud) -> Self:
        copy = type(self).__new__(type(self))
        copy.inner = inner
        copy.loop = self.loop
        copy.messages = Messages(copy)
        return copy


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    # Outside the class: a thread that held its owner would keep it alive for ever.
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)


async def _awaited(work: Awaitable[T]) -> T:
    return await work
