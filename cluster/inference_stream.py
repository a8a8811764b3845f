"""One streamed call: retried until its first content event, then bound to its endpoint.

Where its caller asked for it, a stream that breaks in its text is carried on elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from anthropic.types import RawMessageStreamEvent, Usage

from agentcloud.cluster.attempts import Attempts
from agentcloud.cluster.clock import Clock
from agentcloud.cluster.continuation import Continuation, Splice, added, continuation
from agentcloud.cluster.contracts import Params, Receipt, Routing, Timings
from agentcloud.cluster.conversation import mark_event
from agentcloud.cluster.errors import AgentCloudError, BackendError, StreamBroken
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
    the call is never sent again, unless `routing.continuation` says so: then the caller still sees
    one message.

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
        self._params = self._sent = params
        self._routing = routing
        self._after: Continuation | None = None
        self._splice: Splice | None = None
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
        while not self._held_back:
            if self._opened is None:
                raise StopAsyncIteration
            try:
                await self._read()
            except BackendError as error:
                await self._go_on(error)
        return self._held_back.popleft()

    async def open(self) -> None:
        """Send the call and wait for its first content event, trying again as `create` does.

        Raises:
            BackendError, NoEndpoint, BudgetExceeded: as `Inference.create`.
        """
        run = self._run = self._inference.begin(self._params, self._routing, stream=True)
        await self._open_part(run)

    async def _open_part(self, run: Attempts) -> None:
        """Send what is to be sent next until its first content event is there."""
        before = len(self._seen)
        while True:
            self._opened = await self._inference.lease(run, self._sent)
            self._events = self._opened.endpoint.stream(self._opened.send.call)
            self._usage, self._first_s = MessageFold(), None
            self._splice = Splice(self._after) if self._after is not None else None
            try:
                while not await self._read():
                    pass
            except BackendError as error:
                self._held_back.clear()
                del self._seen[before:]
                send, self._opened = self._opened.send, None
                await self._inference.after_failure(run, send, error)
            else:
                return

    async def _go_on(self, error: BackendError) -> None:
        """Ask for the rest of a stream that broke after part of it was delivered.

        Raises:
            StreamBroken: that is not wanted, or not possible.
        """
        opened, run = self._opened, self._run
        after = self._continuation()
        if after is None or opened is None or run is None:
            raise self._broken(error) from error
        self._opened = None
        try:
            await self._inference.after_failure(run, opened.send, error, goes_on=True)
            usage = self._usage.usage()
            told = None if usage is None else Usage.model_validate(usage)
            run.continues(after.params, opened.send, told)
            self._sent, self._after = after.params, after
            self._usage = MessageFold()
            await self._open_part(run)
        except AgentCloudError as later:
            raise self._broken(error, later) from later

    def _continuation(self) -> Continuation | None:
        if not self._routing.continuation:
            return None
        kinds = [event.type for event in self._seen if event.type.startswith("content_block_s")]
        return continuation(
            self._params,
            self._delivered().as_dict(),
            is_open=kinds[-1:] == ["content_block_start"],
            usage=self._usage_so_far(),
        )

    async def aclose(self) -> None:
        """Give the stream up where it has not ended: its generation is aborted."""
        self._held_back.clear()
        self._abandon()
        await self._close_events()

    async def _read(self) -> bool:
        """Hold the endpoint's next event ready; whether it was one of content."""
        event = await self._next()
        shown = [event] if self._splice is None else self._splice.take(event)
        self._seen += shown
        self._held_back += shown
        return event.type in _CONTENT

    async def _next(self) -> RawMessageStreamEvent:
        """The next event of the endpoint; settles the lease where the message ends."""
        opened = self._opened
        assert opened is not None
        assert self._events is not None
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

    def _delivered(self) -> MessageFold:
        fold = MessageFold()
        for event in self._seen:
            fold.add(event.to_dict())
        return fold

    def _usage_so_far(self) -> dict[str, Any] | None:
        """Of all parts, as far as it was told."""
        before = None if self._after is None else self._after.usage
        usage = self._usage.usage()
        return usage if before is None else added(before, usage)

    def _broken(self, error: BackendError, later: AgentCloudError | None = None) -> StreamBroken:
        """Settle a stream that broke after part of it was delivered.

        Args:
            error: how it broke.
            later: why it could not be carried on, where that was tried.
        """
        opened, run = self._opened, self._run
        self._opened = None
        if opened is not None and run is not None:
            settlement, _ = run.failed(opened.send, error, self._clock.now(), delivered=True)
            self._scheduler.settle(settlement)
        fold = self._delivered()
        more = "" if later is None or later is error else f"; it cannot go on: {later}"
        return StreamBroken(
            f"the stream broke after part of the answer: {error.message}{more}",
            partial=fold.as_dict() if fold.started else None,
            usage=self._usage_so_far(),
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
