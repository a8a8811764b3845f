"""anthropic's own stream helpers over agentcloud's streams: same classes, same surface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx2
from anthropic import AsyncStream, NotGiven, Stream, not_given
from anthropic.lib.streaming import (
    AsyncMessageStream,
    AsyncMessageStreamManager,
    MessageStream,
    MessageStreamManager,
)
from anthropic.types import RawMessageStreamEvent
from typing_extensions import override

from agentcloud.cluster.anthropic_errors import raising_anthropic
from agentcloud.cluster.inference_stream import InferenceStream
from agentcloud.cluster.message import RoutedParsedMessage, parsed_with_receipt

if TYPE_CHECKING:
    from agentcloud.cluster.client_sync import BackgroundLoop
    from agentcloud.cluster.contracts import Receipt

T = TypeVar("T")

_URL: Final = "https://agentcloud.invalid/v1/messages"


class AsyncEventStream(AsyncStream[RawMessageStreamEvent]):
    """What `create(stream=True)` gives: the raw events, and the receipt once they have ended."""

    def __init__(self, inner: InferenceStream) -> None:
        # The base class reads an HTTP response, of which there is none here.
        self.response = httpx2.Response(200, request=httpx2.Request("POST", _URL))
        self._inner = inner

    @property
    def agentcloud(self) -> Receipt | None:
        """The call's receipt; None until the stream has ended."""
        return self._inner.receipt

    @override
    async def __anext__(self) -> RawMessageStreamEvent:
        with raising_anthropic():
            return await anext(self._inner)

    @override
    async def __aiter__(self) -> AsyncIterator[RawMessageStreamEvent]:
        with raising_anthropic():
            async for event in self._inner:
                yield event

    @override
    async def close(self) -> None:
        """Give up what has not come; the lease is released, the generation aborted."""
        await self._inner.aclose()


class RoutedAsyncMessageStream(AsyncMessageStream[T]):
    """anthropic's `AsyncMessageStream` with a receipt."""

    @property
    def agentcloud(self) -> Receipt | None:
        """The call's receipt; None until the stream has ended."""
        stream: Any = self._raw_stream
        return stream.agentcloud if isinstance(stream, AsyncEventStream) else None

    @override
    async def get_final_message(self) -> RoutedParsedMessage[T]:
        """Read to the end and return the accumulated message, its receipt attached."""
        message = await super().get_final_message()
        receipt = self.agentcloud
        if receipt is None:
            raise RuntimeError("the stream was closed before its message was whole")
        return parsed_with_receipt(message, receipt)


class RoutedAsyncMessageStreamManager(AsyncMessageStreamManager[T]):
    """anthropic's manager; enters into a stream with a receipt."""

    def __init__(
        self,
        request: Awaitable[AsyncEventStream],
        *,
        output_format: T | NotGiven = not_given,
    ) -> None:
        super().__init__(request, output_format=output_format)
        self._request = request
        self._output_format = output_format
        self._stream: RoutedAsyncMessageStream[T] | None = None

    @override
    async def __aenter__(self) -> RoutedAsyncMessageStream[T]:
        self._stream = RoutedAsyncMessageStream(await self._request, self._output_format)
        return self._stream

    @override
    async def __aexit__(self, *exception: object) -> None:
        if self._stream is not None:
            await self._stream.close()


class EventStream(Stream[RawMessageStreamEvent]):
    """`AsyncEventStream` for callers without an event loop."""

    def __init__(self, inner: AsyncEventStream, loop: BackgroundLoop) -> None:
        self.response = inner.response
        self._inner = inner
        self._loop = loop

    @property
    def agentcloud(self) -> Receipt | None:
        """The call's receipt; None until the stream has ended."""
        return self._inner.agentcloud

    @override
    def __next__(self) -> RawMessageStreamEvent:
        event = self._loop.run(self._after())
        if event is None:
            raise StopIteration
        return event

    async def _after(self) -> RawMessageStreamEvent | None:
        # A coroutine cannot raise StopIteration through a future: None stands for the end.
        try:
            return await anext(self._inner)
        except StopAsyncIteration:
            return None

    @override
    def __iter__(self) -> Iterator[RawMessageStreamEvent]:
        while (event := self._loop.run(self._after())) is not None:
            yield event

    @override
    def close(self) -> None:
        """Give up what has not come."""
        self._loop.run(self._inner.close())


class RoutedMessageStream(MessageStream[T]):
    """anthropic's `MessageStream` with a receipt."""

    @property
    def agentcloud(self) -> Receipt | None:
        """The call's receipt; None until the stream has ended."""
        stream: Any = self._raw_stream
        return stream.agentcloud if isinstance(stream, EventStream) else None

    @override
    def get_final_message(self) -> RoutedParsedMessage[T]:
        """Read to the end and return the accumulated message, its receipt attached."""
        message = super().get_final_message()
        receipt = self.agentcloud
        if receipt is None:
            raise RuntimeError("the stream was closed before its message was whole")
        return parsed_with_receipt(message, receipt)


class RoutedMessageStreamManager(MessageStreamManager[T]):
    """anthropic's manager; enters into a stream with a receipt."""

    def __init__(
        self,
        request: Awaitable[AsyncEventStream],
        loop: BackgroundLoop,
        *,
        output_format: T | NotGiven = not_given,
    ) -> None:
        def opened() -> EventStream:
            return EventStream(loop.run(request), loop)

        super().__init__(opened, output_format=output_format)
        self._open = opened
        self._output_format = output_format
        self._stream: RoutedMessageStream[T] | None = None

    @override
    def __enter__(self) -> RoutedMessageStream[T]:
        self._stream = RoutedMessageStream(self._open(), self._output_format)
        return self._stream

    @override
    def __exit__(self, *exception: object) -> None:
        if self._stream is not None:
            self._stream.close()
