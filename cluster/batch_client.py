"""A process's side of the batcher, and the endpoint that calls that can wait go to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator
from typing import Final
from weakref import WeakSet

import structlog
from anthropic.types import RawMessageStreamEvent
from pydantic_core import from_json, to_json

from agentcloud.cluster.batch_wire import Ask, BatchPort, Delivery, Tell
from agentcloud.cluster.contracts import Answer, Call, EndpointSpec, Params, Timings
from agentcloud.cluster.errors import CallTimeout, ConnectionFailed, InvalidRequest
from agentcloud.cluster.fold import message_of
from agentcloud.cluster.ports import Endpoint

#: How often a process that waits asks for what has ended.
BEAT_S: Final = 1.0
#: A batcher that does not come back within this is given up.
PATIENCE_S: Final = 60.0
_AGAIN_S: Final = 0.2
_MOST_ASKS: Final = 1000
_MOST_BYTES: Final = 16_000_000

log = structlog.get_logger()
_clients: WeakSet[BatchClient] = WeakSet()


def calls_waiting() -> int:
    """Calls of this process that wait for their batches."""
    return sum(client.waiting for client in _clients)


class BatcherLost(Exception):
    """The batcher cannot be reached just now."""


class BatchClient:
    """Hands calls to the batcher and waits for their deliveries; one a process and event loop.

    A batcher that was started again is told all that waits again: telling twice is telling once.
    """

    def __init__(
        self, port: BatchPort, *, beat_s: float = BEAT_S, patience_s: float = PATIENCE_S
    ) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._port = port
        self._beat_s = beat_s
        self._patience_s = patience_s
        self._waiting: dict[str, tuple[Ask, asyncio.Future[Delivery]]] = {}
        self._to_tell: dict[str, Ask] = {}
        self._to_drop: dict[str, None] = {}
        self._to_ack: dict[str, None] = {}
        self._epoch: str | None = None
        self._wake = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<BatchClient {self.holder} waiting={len(self._waiting)}>"

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._waiting)

    async def ask(self, ask: Ask) -> Delivery:
        """Hand a call over and wait until it has ended; cancelling it gives it up."""
        if self._main is None:
            self._main = asyncio.create_task(self._run())
        future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._waiting[ask.ask_id] = ask, future
        self._to_tell[ask.ask_id] = ask
        self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            self._to_tell.pop(ask.ask_id, None)
            self._to_drop[ask.ask_id] = None
            self._wake.set()
            raise
        finally:
            del self._waiting[ask.ask_id]

    async def close(self) -> None:
        """Leave: what still waits is given up."""
        main, self._main = self._main, None
        if main is None:
            return
        main.cancel()
        await asyncio.gather(main, return_exceptions=True)
        for _, future in self._waiting.values():
            future.cancel()
        try:
            await self._port.leave(self.holder)
        except BatcherLost as error:
            log.info("the batcher was gone at close", why=str(error))

    async def _run(self) -> None:
        lost_s: float | None = None
        while True:
            if not (self._waiting or self._to_drop or self._to_ack):
                await self._wake.wait()
            try:
                more = await self._exchange()
                lost_s = None
            except Exception as error:
                if not isinstance(error, BatcherLost):
                    log.exception("telling the batcher failed")
                lost_s = lost_s or time.monotonic()
                if time.monotonic() - lost_s > self._patience_s:
                    self._fail_all(error)
                    lost_s = None
                await asyncio.sleep(_AGAIN_S)
                continue
            if more:
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(self._beat_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _exchange(self) -> bool:
        """One round trip; returns whether there is more to tell or to be told."""
        asks, size_bytes = [], 0
        for ask in self._to_tell.values():
            asks.append(ask)
            size_bytes += len(ask.body)
            if len(asks) == _MOST_ASKS or size_bytes > _MOST_BYTES:
                break
        drops, acks = list(self._to_drop), list(self._to_ack)
        told = await self._port.exchange(Tell(self.holder, asks, drops, acks))
        for ask in asks:
            self._to_tell.pop(ask.ask_id, None)
        for ask_id in drops:
            self._to_drop.pop(ask_id, None)
        for ask_id in acks:
            self._to_ack.pop(ask_id, None)
        if self._epoch not in (None, told.epoch):
            self._to_tell.update((ask_id, ask) for ask_id, (ask, _) in self._waiting.items())
        self._epoch = told.epoch
        for delivery in told.deliveries:
            self._to_ack[delivery.ask_id] = None
            self._to_tell.pop(delivery.ask_id, None)
            _, future = self._waiting.get(delivery.ask_id, (None, None))
            if future is not None and not future.done():
                future.set_result(delivery)
        return bool(told.deliveries or self._to_tell)

    def _fail_all(self, why: Exception) -> None:
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    ConnectionFailed(
                        f"the batcher is gone ({why}) and did not come back within "
                        f"{self._patience_s:g} s; look at it with `agentcloud doctor`",
                        maybe_paid=True,
                    )
                )


class BatchEndpoint:
    """A hosted model by Message Batches; implements `contracts.Endpoint`.

    Guarantees: only `BackendError`s are raised; cancelling a call gives it up.
    """

    def __init__(self, spec: EndpointSpec, client: BatchClient, direct: Endpoint) -> None:
        """Nothing is sent before the first call.

        Args:
            spec: the endpoint.
            client: this process's way to the batcher.
            direct: the same model without batches, to count tokens.
        """
        self._spec = spec
        self._client = client
        self._direct = direct

    def __repr__(self) -> str:
        return f"BatchEndpoint({self._spec.name})"

    async def create(self, call: Call) -> Answer:
        """Wait until the call's batch has ended."""
        spec = self._spec
        ask = Ask(
            call.call_id,
            spec.account or "",
            spec.name,
            digest_of(call.params),
            to_json(call.params),
        )
        sent_s = time.perf_counter()
        try:
            async with asyncio.timeout(call.timeout_s):
                delivery = await self._client.ask(ask)
        except TimeoutError:
            raise CallTimeout(
                f"{spec.name}: its batch had not ended after {call.timeout_s:g} s",
                timeout_s=call.timeout_s,
                endpoint=spec.name,
                maybe_paid=True,
            ) from None
        if delivery.error is not None:
            delivery.error.endpoint = spec.name
            raise delivery.error
        total_s = time.perf_counter() - sent_s
        # The first token comes with the last one. Of a call that was sent before it was asked
        # for here, only the batch tells how long it took.
        ttft_s = delivery.took_s if delivery.taken_over else total_s
        return Answer(
            message=message_of(from_json(delivery.message or b"{}")),
            timings=Timings(ttft_s=ttft_s, generation_s=0.0, total_s=total_s),
        )

    def stream(self, call: Call) -> AsyncIterator[RawMessageStreamEvent]:
        """Batches give no streams.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest(f"{self._spec.name}: a batch gives no streams; use `create`")

    async def count_tokens(self, params: Params) -> int:
        """Tokens of the prompt, as the server counts them."""
        return await self._direct.count_tokens(params)

    async def close(self) -> None:
        """Give up what waits."""
        await self._client.close()
        await self._direct.close()


def digest_of(params: Params) -> str:
    """Names a request's content: the same for the same parameters in any order."""
    text = json.dumps(params, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
