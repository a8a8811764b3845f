"""`AsyncAgentCloud`: what `AsyncAnthropic` is, over a whole fleet.

A program changes its import and its constructor, and nothing else. Models are those of fleet.yaml,
by name, tier or alias; keys are the fleet's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, overload

import anthropic
import httpx2
from anthropic import NotGiven, not_given
from anthropic.types import MessageTokensCount, ParsedMessage
from pydantic import TypeAdapter
from typing_extensions import TypeVar

from agentcloud.cluster.anthropic_errors import raising_anthropic
from agentcloud.cluster.client_params import request_of, seconds
from agentcloud.cluster.client_stream import AsyncEventStream, RoutedAsyncMessageStreamManager
from agentcloud.cluster.contracts import Params, Routing
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.logs import quiet_unless_configured
from agentcloud.cluster.message import RoutedMessage, RoutedParsedMessage, parsed_with_receipt
from agentcloud.cluster.tiers import FleetTiers

#: Type of a parsed output; None where `stream` is asked for none.
T = TypeVar("T", default=None)

#: Arguments of the bare client that have no meaning here, because keys are the fleet's.
_IGNORED: Final = frozenset({"api_key", "auth_token", "webhook_key", "credentials"})
_ELSEWHERE: Final = {
    "base_url": "set base_url of an account in fleet.yaml",
    "default_headers": "calls may go to any endpoint; remove it",
    "default_query": "calls may go to any endpoint; remove it",
    "http_client": "agentcloud makes its own connections; remove it",
    "middleware": "calls may go to any endpoint; remove it",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a client adds to each of its calls."""

    routing: Routing
    timeout_s: float | None = None


def options_of(
    options: Options,
    timeout: float | httpx2.Timeout | NotGiven | None,
    max_retries: int | None,
    ignored: Mapping[str, Any],
) -> Options:
    """`options` with the arguments of a constructor or of `with_options`.

    Raises:
        ConfigError: an argument that agentcloud cannot honour.
    """
    for name, value in ignored.items():
        if name in _ELSEWHERE and value is not None:
            raise ConfigError(f"AgentCloud takes no {name}: {_ELSEWHERE[name]}")
        if name not in _IGNORED and name not in _ELSEWHERE:
            raise ConfigError(
                f"AgentCloud takes no {name}; it takes routing, timeout, max_retries, and for "
                f"unchanged programs an api_key that it does not use"
            )
    routing = options.routing
    if max_retries is not None:
        if max_retries < 0:
            raise ConfigError(f"max_retries is {max_retries}; give 0 or more")
        routing = replace(routing, max_attempts=max_retries + 1)
    return Options(routing, seconds(timeout, options.timeout_s))


class AsyncMessages:
    """`client.messages`: Anthropic's parameters and answers, `routing=` beside them."""

    def __init__(self, client: AsyncAgentCloud) -> None:
        self._client = client

    @overload
    async def create(
        self, *, routing: Routing | None = None, stream: Literal[True], **params: Any
    ) -> AsyncEventStream: ...

    @overload
    async def create(
        self, *, routing: Routing | None = None, stream: Literal[False] = False, **params: Any
    ) -> RoutedMessage: ...

    async def create(
        self, *, routing: Routing | None = None, stream: bool = False, **params: Any
    ) -> RoutedMessage | AsyncEventStream:
        """Create a message.

        Args:
            routing: tier, deadline, priority, budget; None: the client's.
            stream: give the raw events instead of the whole message.
            **params: of `anthropic.AsyncAnthropic().messages.create`.

        Returns:
            The message, its receipt at `.agentcloud`; or the stream of its raw events.

        Raises:
            anthropic.APIError: where the API defines the failure; ours is its `__cause__`.
            NoEndpoint: nothing of the fleet can serve the request.
            BudgetExceeded: its worst case would pass a cap.
        """
        request, chosen = self._request(params, routing)
        inference = await self._client.inference()
        with raising_anthropic():
            if stream is True:
                return await _opened(inference, request, chosen)
            return await inference.create(request, chosen)

    def stream(
        self,
        *,
        routing: Routing | None = None,
        output_format: type[T] | NotGiven = not_given,
        **params: Any,
    ) -> RoutedAsyncMessageStreamManager[T]:
        """Stream a message through anthropic's helper: `async with`, `text_stream`, and so on."""
        request, chosen = self._request(with_format(params, output_format), routing)
        kept: Any = output_format
        return RoutedAsyncMessageStreamManager(self._open(request, chosen), output_format=kept)

    async def parse(
        self,
        *,
        output_format: type[T],
        routing: Routing | None = None,
        **params: Any,
    ) -> RoutedParsedMessage[T]:
        """Create a message and validate its text as `output_format`.

        The call is paid and settled before it is validated.

        Raises:
            pydantic.ValidationError: the answer is not of that type.
        """
        message = await self.create(routing=routing, **with_format(params, output_format))
        return parsed(message, output_format)

    async def count_tokens(
        self, *, routing: Routing | None = None, **params: Any
    ) -> MessageTokensCount:
        """Tokens of the prompt, as the endpoint that would serve it counts them."""
        request, chosen = self._request(params, routing)
        inference = await self._client.inference()
        with raising_anthropic():
            tokens = await inference.count_tokens(request, chosen)
        return MessageTokensCount(input_tokens=tokens)

    async def _open(self, request: Params, routing: Routing) -> AsyncEventStream:
        inference = await self._client.inference()
        with raising_anthropic():
            return await _opened(inference, request, routing)

    def _request(
        self, params: Mapping[str, Any], routing: Routing | None
    ) -> tuple[dict[str, Any], Routing]:
        options = self._client.options
        return request_of(params, routing or options.routing, options.timeout_s)


class AsyncAgentCloud:
    """Drop-in for `anthropic.AsyncAnthropic`.

    `timeout` limits one send and `max_retries` the sends after the first, as in the bare client;
    `api_key` and its kin are accepted for unchanged programs and not used.
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
        """Nothing is connected before the first call.

        Args:
            inference: serves the calls; None: connect to the running cluster.
            address: of the cluster's Ray; None: the one this machine belongs to.
            routing: applied to every call that brings none of its own.
            timeout: longest time of one send, seconds.
            max_retries: sends after the first; None: fleet.yaml's `retry.max_attempts`.
            **ignored: other arguments of `AsyncAnthropic`.

        Raises:
            ConfigError: an argument that agentcloud cannot honour.
        """
        quiet_unless_configured()
        self.options = options_of(Options(routing or Routing()), timeout, max_retries, ignored)
        self._connected = _Connection(inference, address)
        self.messages = AsyncMessages(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connected!r})"

    async def inference(self) -> Inference:
        """What serves the calls; connects on the first use.

        Raises:
            ConfigError: there is no cluster to connect to.
        """
        return self._connected.inference or await self._connected.get()

    async def tiers(self) -> FleetTiers:
        """The fleet's tiers, cheapest first."""
        return (await self.inference()).tiers

    def with_routing(self, routing: Routing) -> Self:
        """The same client with other routing."""
        return self._with(replace(self.options, routing=routing))

    def with_options(
        self,
        *,
        timeout: float | httpx2.Timeout | NotGiven | None = not_given,
        max_retries: int | None = None,
        **ignored: Any,
    ) -> Self:
        """The same client with another timeout or number of retries."""
        return self._with(options_of(self.options, timeout, max_retries, ignored))

    async def close(self) -> None:
        """Close what this client connected; an inference that was given stays open."""
        await self._connected.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _with(self, options: Options) -> Self:
        copy = type(self).__new__(type(self))
        copy.options = options
        copy._connected = self._connected
        copy.messages = AsyncMessages(copy)
        return copy


class _Connection:
    """The inference behind a client and its copies: given, or connected once."""

    def __init__(self, inference: Inference | None, address: str | None) -> None:
        self.inference = inference
        self._owned = inference is None
        self._address = address
        self._connecting: asyncio.Future[Inference] | None = None

    def __repr__(self) -> str:
        return (
            repr(self.inference) if self.inference else f"address={self._address!r}, not connected"
        )

    async def get(self) -> Inference:
        # Here, because it imports Ray, which a client over a given inference does not need.
        from agentcloud.cluster.connect import connect

        if self._connecting is None:
            self._connecting = asyncio.ensure_future(connect(self._address))
        try:
            # Shielded: one caller that is cancelled must not end it for the others.
            self.inference = await asyncio.shield(self._connecting)
        except ConfigError:
            self._connecting = None
            raise
        return self.inference

    async def close(self) -> None:
        if self._owned and self.inference is not None:
            inference, self.inference, self._connecting = self.inference, None, None
            await inference.close()


async def _opened(inference: Inference, request: Params, routing: Routing) -> AsyncEventStream:
    stream = inference.stream(request, routing)
    await stream.open()
    return AsyncEventStream(stream)


def with_format(params: Mapping[str, Any], output_format: Any) -> dict[str, Any]:
    """The parameters with `output_format`'s schema in `output_config`, as anthropic sends it."""
    if isinstance(output_format, NotGiven) or output_format is None:
        return dict(params)
    schema = anthropic.transform_schema(TypeAdapter(output_format).json_schema())
    config = {**(params.get("output_config") or {}), "format": _json_format(schema)}
    return {**params, "output_config": config}


def _json_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "schema": schema}


def parsed(message: RoutedMessage, output_format: type[T]) -> RoutedParsedMessage[T]:
    """The message with its text validated.

    Raises:
        pydantic.ValidationError: it is not of that type.
    """
    adapter: TypeAdapter[T] = TypeAdapter(output_format)
    content: list[dict[str, Any]] = [
        {**block.to_dict(), "parsed_output": adapter.validate_json(block.text)}
        if block.type == "text"
        else block.to_dict()
        for block in message.content
    ]
    data: dict[str, Any] = {**message.to_dict(), "content": content}
    whole: ParsedMessage[T] = ParsedMessage.construct(**data)
    return parsed_with_receipt(whole, message.agentcloud)


__all__ = ["AsyncAgentCloud", "AsyncMessages"]
