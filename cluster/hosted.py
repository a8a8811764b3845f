"""Calls hosted models: the sole caller of the anthropic client.

One client an account and event loop, over aiohttp, without retries of its own (inference.py has
the only retry loop). Requests go out as the client's own `post`, which takes the parameters as
they are and gives the API's JSON back: `messages.create` builds typed objects for every event and
costs half as much again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Final, TypeVar, cast

import httpx2
from anthropic import AsyncAnthropic, AsyncStream, RequestOptions
from anthropic.types import RawMessageStreamEvent
from pydantic_core import to_json

from agentcloud.cluster.config_models import Account
from agentcloud.cluster.contracts import Answer, Call, EndpointSpec, Params, Timings
from agentcloud.cluster.errors import BackendError, ConfigError, StreamBroken, Unusable
from agentcloud.cluster.fault_points import reached
from agentcloud.cluster.fold import MessageFold, message_of
from agentcloud.cluster.hosted_clients import ClientPool
from agentcloud.cluster.hosted_errors import limit_headers, of_body, translate
from agentcloud.cluster.sse import SseReader

T = TypeVar("T")

#: Longest wait for a TCP and TLS connection, seconds; nothing has been sent until then.
CONNECT_S: Final = 10.0
_MESSAGES: Final = "/v1/messages"
_COUNT: Final = "/v1/messages/count_tokens"
#: What `/v1/messages/count_tokens` takes of a request.
_COUNTED: Final = frozenset(
    {"messages", "model", "system", "tools", "tool_choice", "thinking", "output_config"}
)


class HostedEndpoint:
    """One hosted model at one account; implements `contracts.Endpoint`.

    Guarantees: one call is one HTTP request; only `BackendError`s are raised; cancelling a call
    closes its connection.
    """

    def __init__(
        self, spec: EndpointSpec, account: Account, *, where: str = "fleet.yaml: accounts"
    ) -> None:
        """Nothing is opened before the first call.

        Args:
            spec: the endpoint.
            account: its account's section of fleet.yaml.
            where: what an error about its key names.
        """
        self._spec = spec
        self._account = account
        self._clients = ClientPool(account, f"{where}.{spec.account}")

    def __repr__(self) -> str:
        return f"HostedEndpoint({self._spec.name}, wire={self._account.wire})"

    async def create(self, call: Call) -> Answer:
        """Serve one call; over `wire: stream` its time to first token is measured."""
        fold = MessageFold()
        try:
            async with asyncio.timeout(call.timeout_s):
                if self._account.wire == "unary":
                    return await self._unary(call)
                return await self._streamed(call, fold)
        except BackendError:
            raise
        except Exception as error:
            raise self.translated(error, call, fold.started) from error

    def stream(self, call: Call) -> HostedStream:
        """Serve one call as typed raw events; a stream that ends early is an error."""
        return HostedStream(self, call)

    async def count_tokens(self, params: Params) -> int:
        """Tokens of the prompt, as the server counts them."""
        body = {key: value for key, value in params.items() if key in _COUNTED}
        call = Call(call_id="", params=body, timeout_s=60.0)
        try:
            data = await self.client().post(
                _COUNT, body=body, cast_to=object, options={"timeout": call.timeout_s}
            )
            return int(cast("dict[str, Any]", data)["input_tokens"])
        except Exception as error:
            raise self.translated(error, call, False) from error

    async def close(self) -> None:
        """Let go of the account's client; the last to do so closes its connections."""
        await self._clients.close()

    def client(self) -> AsyncAnthropic:
        """The account's client in the running loop.

        Raises:
            Unusable: this node has no key for the account.
        """
        try:
            return self._clients.get()
        except ConfigError as error:
            raise Unusable(f"{self._spec.name}: {error}", endpoint=self._spec.name) from error

    async def _streamed(self, call: Call, fold: MessageFold) -> Answer:
        sent_s = time.perf_counter()
        first_s: float | None = None
        response: httpx2.Response = await _post(self.client(), call, httpx2.Response)
        reached("sent")
        headers = limit_headers(response.headers)
        reader = SseReader()
        try:
            async for chunk in response.aiter_bytes():
                for event in reader.feed(chunk):
                    if event["type"] == "error":
                        raise of_body(event, headers, self._spec.name, began=fold.started)
                    fold.add(event)
                if first_s is None and fold.has_delta:
                    first_s = time.perf_counter()
                    if call.on_first is not None:
                        call.on_first()
        finally:
            # Also on cancellation: an unread response must not go back to the pool.
            await response.aclose()
        if not fold.is_complete:
            raise self.cut(fold)
        now_s = time.perf_counter()
        return Answer(
            message=message_of(fold.as_dict()),
            timings=Timings(
                ttft_s=None if first_s is None else first_s - sent_s,
                generation_s=None if first_s is None else now_s - first_s,
                total_s=now_s - sent_s,
            ),
            limit_headers=headers,
        )

    async def _unary(self, call: Call) -> Answer:
        sent_s = time.perf_counter()
        response = await self.client().post(
            _MESSAGES,
            content=to_json(call.params),
            cast_to=httpx2.Response,
            options=_options(call),
        )
        message = message_of(response.json())
        return Answer(
            message=message,
            timings=Timings(total_s=time.perf_counter() - sent_s),
            limit_headers=limit_headers(response.headers),
        )

    def cut(self, fold: MessageFold | None = None) -> StreamBroken:
        """The error for a stream that ended without `message_stop`."""
        started = fold is not None and fold.started
        return StreamBroken(
            f"{self._spec.name}: the stream ended before its message did",
            endpoint=self._spec.name,
            maybe_paid=True,
            partial=fold.as_dict() if fold and started else None,
            usage=fold.usage() if fold and started else None,
        )

    def translated(self, error: Exception, call: Call, began: bool) -> BackendError:
        """Our error for one of the client's."""
        return translate(error, self._spec.name, timeout_s=call.timeout_s, began=began)


class HostedStream:
    """The raw events of one streamed call; close it to give the connection back.

    Attributes:
        limit_headers: the response's headers about limits, once the first event is there.
    """

    def __init__(self, endpoint: HostedEndpoint, call: Call) -> None:
        self.limit_headers: dict[str, str] = {}
        self._endpoint = endpoint
        self._call = call
        #: Seconds left to wait for the server; the reader's own time does not count.
        self._left_s = call.timeout_s
        self._events = self._read()

    def __aiter__(self) -> HostedStream:
        return self

    async def __anext__(self) -> RawMessageStreamEvent:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Close the connection; an answer that is still coming is abandoned."""
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[RawMessageStreamEvent, None]:
        began = complete = False
        try:
            events = await self._in_time(
                _post(self._endpoint.client(), self._call, RawMessageStreamEvent)
            )
            self.limit_headers = limit_headers(events.response.headers)
            try:
                while (event := await self._in_time(anext(events, None))) is not None:
                    if not began and self._call.on_first is not None:
                        self._call.on_first()
                    began = True
                    complete = complete or event.type == "message_stop"
                    yield event
            finally:
                await events.close()
        except BackendError:
            raise
        except Exception as error:
            raise self._endpoint.translated(error, self._call, began) from error
        if not complete:
            raise self._endpoint.cut()

    async def _in_time(self, step: Awaitable[T]) -> T:
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._left_s):
                return await step
        finally:
            self._left_s -= time.perf_counter() - began_s


async def _post(client: AsyncAnthropic, call: Call, cast_to: Any) -> Any:
    """An open event stream: typed events, or the bare response."""
    return await client.post(
        _MESSAGES,
        content=to_json({**call.params, "stream": True}),
        cast_to=cast_to,
        options=_options(call),
        stream=True,
        stream_cls=AsyncStream[cast_to],
    )


def _options(call: Call) -> RequestOptions:
    seconds = call.timeout_s
    return {
        "timeout": httpx2.Timeout(seconds, connect=min(CONNECT_S, seconds), pool=None),
        # Never sent, but else the client draws a random one.
        "idempotency_key": call.call_id,
    }
