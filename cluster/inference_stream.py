"""One streamed call: retried until its first content event, then bound to its endpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from anthropic.types import RawMessageStreamEvent, Usage

from agentcloud.cluster.attempts import Attempts
from agentcloud.cluster.clock import Clock
from agentcloud.cluster.contracts import (
    Params,
    Receipt,
    Routing,
    Timings,
)
from agentcloud.cluster.conversation import mark_event
from agentcloud.cluster.errors import BackendError, StreamBroken
from agentcloud.cluster.fold import MessageFold
from agentcloud.cluster.ports import SchedulerPort

if TYPE_CHECKING:
    from agentcloud.cluster.inference import Inference, Opened

#: From here on the caller has seen part of the answer.
_CONTENT: Final = frozenset({"content_block_delta", "message_delta", "message_stop"})
_TOLD_ABOUT_USAGE: Final = frozenset({"message_start", "message_delta", "message_stop"})


class InferenceStream:
    """The raw events of one call.

    Guarantees: the lease is held until the stream ends or is closed; after the first content event
    the call is never sent again.

    Attributes:
        receipt: who served, at what cost; None until `message_stop` has come.
    """

    def __init__(
        self,
        inference: Inference,
        scheduler: SchedulerPort,
        clock: Clock,
        params: Params,
        routing: Routing,
    ) -> None:
        self.receipt: Receipt | None = None
        self._inference = inference
        self._scheduler = scheduler
        self._clock = clock
        self._params = params
        self._routing = routing
        self._run: Attempts | None = None
        self._opened: Opened | None = None
        self._events: AsyncIterator[RawMessageStreamEvent] | None = None
        self._held_back: deque[RawMessageStreamEvent] = deque()
        self._seen: list[RawMessageStreamEvent] = []
        self._usage = MessageFold()
        self._first_s: float | None = None

    def __repr__(self) -> str:
        state = "ended" if self.receipt else "open" if self._opened else "closed"
        return f"InferenceStream({state}, events={len(self._seen)})"

    async def __aenter__(self) -> InferenceStream:
        await self.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __aiter__(self) -> InferenceStream:
        return self

    async def __anext__(self) -> RawMessageStreamEvent:
        if self._run is None:
            await self.open()
        if self._held_back:
            return self._held_back.popleft()
        if self._opened is None:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BackendError as error:
            raise self._broken(error) from error

    async def open(self) -> None:
        """Send the call and wait for its first content event, trying again as `create` does.

        Raises:
            BackendError, NoEndpoint, BudgetExceeded: as `Inference.create`.
        """
        self._run = self._inference.begin(self._params, self._routing, stream=True)
        while True:
            self._opened = await self._inference.lease(self._run, self._params)
            self._events = self._opened.endpoint.stream(self._opened.send.call)
            self._seen, self._usage, self._first_s = [], MessageFold(), None
            try:
                while True:
                    event = await self._next()
                    self._held_back.append(event)
                    if event.type in _CONTENT:
                        return
            except BackendError as error:
                self._held_back.clear()
                send, self._opened = self._opened.send, None
                await self._inference.after_failure(self._run, send, error)

    async def aclose(self) -> None:
        """Give the stream up where it has not ended: its generation is aborted."""
        self._held_back.clear()
        self._abandon()
        await self._close_events()

    async def _next(self) -> RawMessageStreamEvent:
        """The next event of the endpoint; settles the lease where the message ends."""
        opened = self._opened
        if opened is None or self._events is None:
            raise StopAsyncIteration
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            raise StreamBroken(
                f"{opened.send.lease.endpoint.name}: the stream ended before its message did",
                endpoint=opened.send.lease.endpoint.name,
                maybe_paid=True,
            ) from None
        except BackendError:
            raise
        except BaseException:
            self._abandon()
            raise
        mark_event(event, opened.signer)
        self._seen.append(event)
        if event.type == "content_block_delta":
            if self._first_s is None:
                self._first_s = self._clock.now()
        elif event.type in _TOLD_ABOUT_USAGE:
            self._usage.add(event.to_dict())
            if event.type == "message_stop":
                self._settle()
                await self._close_events()
        return event

    def _settle(self) -> None:
        opened, run = self._opened, self._run
        if opened is None or run is None:
            return
        self._opened = None
        now_s = self._clock.now()
        first_s, sent_s = self._first_s, opened.send.sent_s
        message = self._usage.as_dict()
        settlement, self.receipt = run.succeeded(
            opened.send,
            str(message.get("model", "")),
            Usage.model_validate(message["usage"]),
            Timings(
                ttft_s=None if first_s is None else first_s - sent_s,
                generation_s=None if first_s is None else now_s - first_s,
            ),
            self._limit_headers(),
            now_s,
        )
        self._scheduler.settle(settlement)

    def _broken(self, error: BackendError) -> StreamBroken:
        """Settle a stream that broke after part of it was delivered."""
        opened, run = self._opened, self._run
        self._opened = None
        if opened is not None and run is not None:
            settlement, _ = run.failed(opened.send, error, self._clock.now(), delivered=True)
            self._scheduler.settle(settlement)
        fold = MessageFold()
        for event in self._seen:
            fold.add(event.to_dict())
        return StreamBroken(
            f"the stream broke after part of the answer: {error.message}",
            partial=fold.as_dict() if fold.started else None,
            usage=fold.usage(),
            endpoint=error.endpoint,
            kind=error.kind,
            status=error.status,
            maybe_paid=error.maybe_paid,
            headers=error.headers,
        )

    def _abandon(self) -> None:
        opened, run = self._opened, self._run
        self._opened = None
        if opened is not None and run is not None:
            self._scheduler.settle(
                run.abandoned(opened.send, self._clock.now(), self._usage.usage())
            )

    def _limit_headers(self) -> Mapping[str, str]:
        # Only a stream over HTTP has them.
        headers: Mapping[str, str] = getattr(self._events, "limit_headers", {})
        return headers

    async def _close_events(self) -> None:
        close: Any = getattr(self._events, "aclose", None)
        self._events = None
        if close is not None:
            await close()
