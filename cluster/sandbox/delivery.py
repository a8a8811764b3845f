"""Sending an answer: at the model's pace, with the faults that show while sending."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random

from aiohttp import web
from pydantic_core import to_json

from agentcloud.cluster.sandbox.calls import CallRecord
from agentcloud.cluster.sandbox.core import Outcome, SandboxCore
from agentcloud.cluster.sandbox.errors import ApiError
from agentcloud.cluster.sandbox.settings import Fault, FaultKind, Latency
from agentcloud.cluster.sandbox.stream import Frame, error_event, frames, message_dict

_HALF_EVENT = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"del\n\n'
_SSE = "text/event-stream; charset=utf-8"
_CUTS = (FaultKind.CUT_MID_BODY, FaultKind.CUT_MID_STREAM)
_MALFORMED = (FaultKind.MALFORMED_JSON, FaultKind.MALFORMED_SSE)
_BREAKS_STREAM = (*_CUTS, *_MALFORMED, FaultKind.STREAM_ERROR, FaultKind.HANG_MID_STREAM)


class Delivery:
    """Sends outcomes over HTTP."""

    def __init__(self, core: SandboxCore) -> None:
        self._core = core
        self._rng = Random(core.config.seed)  # noqa: S311 - repeatable jitter

    async def send(
        self, request: web.BaseRequest, outcome: Outcome, record: CallRecord
    ) -> web.StreamResponse:
        """Send one answer.

        Raises:
            ConnectionResetError: a fault cut the connection.
        """
        fault, latency = outcome.fault, self._core.config.latency_of(outcome.model)
        kind = None if fault is None else fault.kind
        if kind is FaultKind.HANG or (kind is FaultKind.HANG_MID_STREAM and not outcome.stream):
            await self._hang(fault)
        await self._sleep(latency.ttft_s, latency)
        # The answer begins here: its cache entries can be read from now on.
        self._core.cache.commit(outcome.usage, self._core.clock.now())
        if kind is FaultKind.CUT_BEFORE_HEADERS:
            self._take_output(outcome, outcome.answer.output_tokens)
            raise _cut(request, record)
        if outcome.stream:
            return await self._send_stream(request, outcome, record, latency)
        return await self._send_whole(request, outcome, record, latency)

    async def _send_whole(
        self, request: web.BaseRequest, outcome: Outcome, record: CallRecord, latency: Latency
    ) -> web.StreamResponse:
        fault, answer = outcome.fault, outcome.answer
        if fault is not None and fault.kind is FaultKind.SLOW_FIRST_TOKEN:
            await self._core.clock.sleep(_delay_s(fault))
        await self._sleep(latency.per_output_token_s * max(0, answer.output_tokens - 1), latency)
        self._take_output(outcome, answer.output_tokens)
        body = to_json(message_dict(outcome.message_id, outcome.model, answer, outcome.usage))
        headers = self._headers(outcome, record)
        record.status = 200
        if fault is not None and fault.kind in _CUTS:
            headers["content-length"] = str(len(body))
            response = web.StreamResponse(headers=headers)
            response.content_type = "application/json"
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            raise _cut(request, record)
        malformed = fault is not None and fault.kind in _MALFORMED
        record.outcome = "malformed" if malformed else "ok"
        return web.Response(
            body=body[: len(body) // 2] if malformed else body,
            headers=headers,
            content_type="application/json",
        )

    async def _send_stream(
        self, request: web.BaseRequest, outcome: Outcome, record: CallRecord, latency: Latency
    ) -> web.StreamResponse:
        events = frames(outcome.message_id, outcome.model, outcome.answer, outcome.usage)
        headers = {
            **self._headers(outcome, record),
            "content-type": _SSE,
            "cache-control": "no-cache",
        }
        record.status = 200
        if outcome.fault is None and not latency.per_output_token_s:
            self._take_output(outcome, outcome.answer.output_tokens)
            record.outcome = "ok"
            return web.Response(body=b"".join(frame.data for frame in events), headers=headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await self._pace(request, response, outcome, record, latency, events)
        return response

    async def _pace(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        outcome: Outcome,
        record: CallRecord,
        latency: Latency,
        events: Iterable[Frame],
    ) -> None:
        """Send the events one by one, each when its tokens are made, as far as the fault lets."""
        clock, fault = self._core.clock, outcome.fault
        due_s = clock.now()
        deltas = sent_tokens = 0
        record.usage["output_tokens"] = 0
        for frame in events:
            if frame.is_delta and deltas:
                due_s += self._jittered(latency.per_output_token_s * frame.tokens, latency)
                wait_s = due_s - clock.now()
                if wait_s > 0:
                    await clock.sleep(wait_s)
            if fault is not None and _strikes(fault, frame, deltas):
                if await self._break(request, response, fault, record):
                    return
                due_s, fault = clock.now(), None
            self._take_output(outcome, frame.tokens)
            sent_tokens += frame.tokens
            deltas += frame.is_delta
            # What was generated until the client goes away is what it pays.
            record.usage["output_tokens"] = sent_tokens
            await response.write(frame.data)
        record.outcome = "ok"
        await response.write_eof()

    async def _break(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        fault: Fault,
        record: CallRecord,
    ) -> bool:
        """Let the fault show in the stream; False if the stream goes on after it."""
        if fault.kind in _CUTS:
            raise _cut(request, record)
        if fault.kind in (FaultKind.SLOW_FIRST_TOKEN, FaultKind.HANG_MID_STREAM):
            if fault.kind is FaultKind.HANG_MID_STREAM:
                await self._hang(fault)
            else:
                await self._core.clock.sleep(_delay_s(fault))
            return False
        if fault.kind is FaultKind.STREAM_ERROR:
            error = ApiError(fault.error_type, "Overloaded")
            record.outcome = fault.error_type
            await response.write(error_event(error, record.request_id))
        else:
            record.outcome = "malformed"
            await response.write(_HALF_EVENT)
        await response.write_eof()
        return True

    def _headers(self, outcome: Outcome, record: CallRecord) -> dict[str, str]:
        core = self._core
        headers = outcome.limits.headers(core.clock.now(), core.wall_s())
        headers["request-id"] = record.request_id
        return headers

    def _take_output(self, outcome: Outcome, tokens: int) -> None:
        outcome.limits.take_output(tokens, self._core.clock.now())

    async def _sleep(self, seconds: float, latency: Latency) -> None:
        if seconds > 0:
            await self._core.clock.sleep(self._jittered(seconds, latency))

    def _jittered(self, seconds: float, latency: Latency) -> float:
        if not latency.jitter:
            return seconds
        return seconds * self._rng.uniform(1 - latency.jitter, 1 + latency.jitter)

    async def _hang(self, fault: Fault | None) -> None:
        if fault is not None and fault.delay_s is not None:
            await self._core.clock.sleep(fault.delay_s)
            return
        # Until the client gives up or the server stops: both cancel this task.
        await asyncio.get_running_loop().create_future()


def _strikes(fault: Fault, frame: Frame, deltas: int) -> bool:
    """Whether the fault shows just before this frame."""
    if fault.kind is FaultKind.SLOW_FIRST_TOKEN:
        return frame.is_delta
    if fault.kind not in _BREAKS_STREAM:
        return False
    return frame.is_end or (frame.is_delta and deltas >= fault.after_deltas)


def _delay_s(fault: Fault) -> float:
    return 1.0 if fault.delay_s is None else fault.delay_s


def _cut(request: web.BaseRequest, record: CallRecord) -> ConnectionResetError:
    """Close the connection; what was written before still goes out."""
    record.outcome = "cut"
    if request.transport is not None:
        request.transport.close()
    return ConnectionResetError("cut by a sandbox fault")
