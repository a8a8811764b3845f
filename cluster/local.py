"""The caller's side of replicas: `LocalEndpoint` batches calls of one process to one replica.

Everything that a replica's death can mean for a call is one error, `ReplicaLost`.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
import weakref
from collections.abc import AsyncIterator
from typing import Any, cast

import ray
import structlog
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from agentcloud.cluster.contracts import (
    RAY_NAMESPACE,
    Answer,
    Call,
    EndpointSpec,
    Params,
)
from agentcloud.cluster.errors import BackendError, CallTimeout, ReplicaLost
from agentcloud.cluster.replica_wire import Answered, Failed, Order, Parcel, Streamed

log = structlog.get_logger()

#: How long calls are collected before they are sent together.
BATCH_S = 0.001

_EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


class LocalEndpoint:
    """A replica, looked up by name. Usable from any event loop; each gets its own link."""

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Link] = (
            weakref.WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        return f"LocalEndpoint({self.spec.name})"

    async def create(self, call: Call) -> Answer:
        """Serve one call; cancelling it aborts it in the engine.

        Raises:
            BackendError: as the replica told it; `ReplicaLost` when it died, `CallTimeout`.
        """
        link = self._link()
        key, inbox = link.send(call, stream=False)
        try:
            async with asyncio.timeout(call.timeout_s):
                parcel = await inbox.get()
        except TimeoutError:
            raise self._late(call) from None
        finally:
            link.forget(key)
        if isinstance(parcel, Answered):
            return Answer(Message.model_validate_json(parcel.message), parcel.timings)
        raise self._failure(parcel)

    async def stream(self, call: Call) -> AsyncIterator[RawMessageStreamEvent]:
        """Serve one call as the API's raw events; leaving the iteration aborts it.

        Raises:
            BackendError: as for `create`, also in mid-stream.
        """
        link = self._link()
        key, inbox = link.send(call, stream=True)
        # One timer, not one for each of its many parcels.
        timer = asyncio.get_running_loop().call_later(
            call.timeout_s, inbox.put_nowait, Failed(key, self._late(call))
        )
        try:
            while True:
                parcel = await inbox.get()
                if not isinstance(parcel, Streamed):
                    raise self._failure(parcel)
                yield _EVENT.validate_json(parcel.event)
                if parcel.timings is not None:
                    return
        finally:
            timer.cancel()
            link.forget(key)

    async def count_tokens(self, params: Params) -> int:
        """Tokens of the prompt, as the replica's tokenizer counts them."""
        try:
            return cast(int, await self._link().actor.count_tokens.remote(params))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BackendError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise self._lost(error) from None

    async def close(self) -> None:
        """Abort this loop's calls and let go of the replica."""
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.close()

    def _link(self) -> _Link:
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None or link.lost is not None:
            try:
                actor = ray.get_actor(self.spec.name, namespace=RAY_NAMESPACE)
            except ValueError as error:
                raise self._lost(error) from None
            link = self._links[loop] = _Link(self.spec.name, actor)
        return link

    def _failure(self, parcel: Parcel) -> BackendError:
        if isinstance(parcel, Failed):
            parcel.error.endpoint = self.spec.name
            return parcel.error
        return BackendError("the replica mixed up a call's answer", endpoint=self.spec.name)

    def _lost(self, error: Exception) -> ReplicaLost:
        return ReplicaLost(f"{self.spec.name} is gone ({_line(error)})", endpoint=self.spec.name)

    def _late(self, call: Call) -> CallTimeout:
        return CallTimeout(
            f"{self.spec.name}: no answer within {call.timeout_s:g} s",
            timeout_s=call.timeout_s,
            endpoint=self.spec.name,
        )


class _Link:
    """One event loop's connection to one replica, until the replica dies or it is closed.

    Attributes:
        lost: why the replica is gone, None while it is there.
    """

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor
        self.lost: ReplicaLost | None = None
        self._holder = uuid.uuid4().hex
        self._keys = itertools.count()
        self._inboxes: dict[int, asyncio.Queue[Parcel]] = {}
        self._orders: list[Order] = []
        self._sending = False
        self._loop = asyncio.get_running_loop()
        # Pends until this process lets go of it or dies: how the replica learns of our death.
        self._life = actor.hold.remote(self._holder)
        self._reader = asyncio.create_task(self._read())

    def send(self, call: Call, *, stream: bool) -> tuple[int, asyncio.Queue[Parcel]]:
        """Hand over a call; its parcels come to the returned inbox."""
        key = next(self._keys)
        inbox: asyncio.Queue[Parcel] = asyncio.Queue()
        self._inboxes[key] = inbox
        self._orders.append(Order(key, call, stream))
        if not self._sending:
            self._sending = True
            if len(self._inboxes) == 1:
                # Idle: nobody to wait for but those of this same turn of the loop.
                self._loop.call_soon(self._flush)
            else:
                self._loop.call_later(BATCH_S, self._flush)
        return key, inbox

    def forget(self, key: int) -> None:
        """The caller is done with a call; one still running is aborted."""
        if self._inboxes.pop(key, None) is None or self.lost is not None:
            return
        self.actor.revoke.remote(self._holder, [key])

    async def close(self) -> None:
        """Detach: the replica aborts what is left."""
        if self.lost is None:
            self._fail(ReplicaLost(f"{self.name}: closed", endpoint=self.name))
            self.actor.detach.remote(self._holder)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _flush(self) -> None:
        self._sending = False
        orders, self._orders = self._orders, []
        # Those forgotten in the meantime were never sent.
        orders = [order for order in orders if order.key in self._inboxes]
        if orders and self.lost is None:
            self.actor.submit.remote(self._holder, orders)

    async def _read(self) -> None:
        try:
            replies = self.actor.attach.options(num_returns="streaming").remote(
                self._holder, [self._life]
            )
            async for reference in replies:
                for parcel in await reference:
                    self._deliver(parcel)
            why: object = "it closed the connection"
        except ray.exceptions.RayError as error:
            why = _line(error)
        self._fail(ReplicaLost(f"{self.name} is gone ({why})", endpoint=self.name))

    def _deliver(self, parcel: Parcel) -> None:
        last = not isinstance(parcel, Streamed) or parcel.timings is not None
        inbox = self._inboxes.pop(parcel.key, None) if last else self._inboxes.get(parcel.key)
        if inbox is not None:
            inbox.put_nowait(parcel)

    def _fail(self, error: ReplicaLost) -> None:
        self.lost = error
        inboxes, self._inboxes = self._inboxes, {}
        for key, inbox in inboxes.items():
            inbox.put_nowait(Failed(key, error))


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
