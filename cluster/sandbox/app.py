"""The routes: the API's own, and those of the sandbox itself (`/sandbox/…`)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from pydantic import PositiveInt, ValidationError
from pydantic_core import to_json

from agentcloud.cluster.sandbox.batches import PATH, Batches
from agentcloud.cluster.sandbox.calls import CallRecord
from agentcloud.cluster.sandbox.core import SandboxCore
from agentcloud.cluster.sandbox.delivery import Delivery
from agentcloud.cluster.sandbox.errors import ApiError, invalid
from agentcloud.cluster.sandbox.faults import FAULT_HEADER, error_of, first_problem
from agentcloud.cluster.sandbox.listing import list_models, model_info
from agentcloud.cluster.sandbox.settings import Fault

log = structlog.get_logger()

_KEPT_HEADERS = ("x-stainless-retry-count", "x-stainless-timeout", "idempotency-key")
_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class QueuedFault(Fault):
    """Body of POST /sandbox/faults: a fault, and how many calls it strikes."""

    count: PositiveInt = 1


class SandboxApp:
    """Answers HTTP requests; `handle` is what the server calls."""

    def __init__(self, core: SandboxCore) -> None:
        self._core = core
        self._delivery = Delivery(core)
        self.batches = Batches(core)
        self._routes: dict[tuple[str, str], _Handler] = {
            ("POST", "/v1/messages"): self._messages,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("POST", PATH): self._create_batch,
            ("GET", PATH): self._list_batches,
            ("GET", "/v1/models"): self._models,
            ("GET", "/sandbox/state"): self._state,
            ("POST", "/sandbox/reset"): self._reset,
            ("POST", "/sandbox/faults"): self._add_fault,
            ("DELETE", "/sandbox/faults"): self._forget_faults,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever goes wrong has the API's shape."""
        handler = self._routes.get((request.method, request.path))
        try:
            if handler is not None:
                return await handler(request)
            if request.method == "GET" and request.path.startswith("/v1/models/"):
                return self._model(request)
            if request.path.startswith(f"{PATH}/"):
                return self._batch(request)
            raise ApiError("not_found_error", "Not Found")
        except ApiError as error:
            return _error_response(error, self._core.new_id("req"))
        except ConnectionError:
            # The connection is gone: nothing of this is sent, and aiohttp logs no traceback.
            return web.Response()

    async def _messages(self, request: web.BaseRequest) -> web.StreamResponse:
        async def answer(body: bytes, record: CallRecord) -> web.StreamResponse:
            header = request.headers.get(FAULT_HEADER)
            outcome = await self._core.answer(body, record, header)
            return await self._delivery.send(request, outcome, record)

        return await self._recorded(request, answer)

    async def _count_tokens(self, request: web.BaseRequest) -> web.StreamResponse:
        async def count(body: bytes, record: CallRecord) -> web.StreamResponse:
            tokens = self._core.count(body, record)
            record.status, record.outcome = 200, "ok"
            return _json_response({"input_tokens": tokens}, record.request_id)

        return await self._recorded(request, count)

    async def _recorded(
        self,
        request: web.BaseRequest,
        answer: Callable[[bytes, CallRecord], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Let `answer` answer, and remember the call and how it ended."""
        account = self._account(request)
        body = await self._read(request, self._core.config.max_body_bytes)
        record = CallRecord(
            number=0,
            at_s=self._core.wall_s(),
            path=request.path,
            account=account,
            request_id=self._core.new_id("req"),
            body_sha256=hashlib.sha256(body).hexdigest(),
            headers={
                name: request.headers[name] for name in _KEPT_HEADERS if name in request.headers
            },
        )
        self._core.calls.open(record)
        try:
            return await answer(body, record)
        except ApiError as error:
            record.status, record.outcome = error.status, error.error_type
            return _error_response(error, record.request_id)
        except asyncio.CancelledError:
            record.outcome = "cancelled"
            raise
        except ConnectionError:
            # Cut by a fault, or the client went away while we wrote.
            if record.outcome == "open":
                record.outcome = "cancelled"
            raise
        except Exception:
            log.exception("sandbox failed", request=record.request_id)
            record.status, record.outcome = 500, "api_error"
            failure = ApiError("api_error", "Internal server error")
            return _error_response(failure, record.request_id)
        finally:
            self._core.calls.close(record)

    def _account(self, request: web.BaseRequest) -> str:
        """Digest of the key, which is the account; the key itself is kept nowhere."""
        headers = request.headers
        key = headers.get("x-api-key")
        if key is None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else None
        if not key:
            raise ApiError("authentication_error", "x-api-key header is required")
        if not self._core.config.accepts_key(key):
            raise ApiError("authentication_error", "invalid x-api-key")
        if "anthropic-version" not in headers:
            raise invalid("anthropic-version", "header is required")
        return hashlib.sha256(key.encode()).hexdigest()[:12]

    async def _read(self, request: web.BaseRequest, limit_bytes: int | None = None) -> bytes:
        too_large = ApiError(
            "request_too_large", "Request exceeds the maximum allowed number of bytes."
        )
        if limit_bytes is not None and (request.content_length or 0) > limit_bytes:
            raise too_large
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large from error
        if limit_bytes is not None and len(body) > limit_bytes:
            raise too_large
        return body

    async def _create_batch(self, request: web.BaseRequest) -> web.StreamResponse:
        account = self._account(request)
        body = await self._read(request)
        fault = self._core.faults.next("*", request.headers.get(FAULT_HEADER), at="batch")
        if fault is not None and (error := error_of(fault, stream=False)) is not None:
            raise error
        batch = await self.batches.create(body, account)
        if fault is not None and request.transport is not None:
            # The batch is made, and nobody is told its id.
            request.transport.close()
            raise ConnectionResetError("cut by a sandbox fault")
        return _json_response(batch.as_dict(_url(request)), self._core.new_id("req"))

    async def _list_batches(self, request: web.BaseRequest) -> web.StreamResponse:
        page = self.batches.page(self._account(request), request.query, _url(request))
        return _json_response(page, self._core.new_id("req"))

    def _batch(self, request: web.BaseRequest) -> web.StreamResponse:
        batch_id, _, what = request.path.removeprefix(f"{PATH}/").partition("/")
        batch = self.batches.get(batch_id, self._account(request))
        asked = (request.method, what)
        if asked == ("GET", "results"):
            return web.Response(
                body=self.batches.results(batch), content_type="application/x-jsonl"
            )
        if asked == ("DELETE", ""):
            self.batches.delete(batch)
            deleted = {"id": batch.id, "type": "message_batch_deleted"}
            return _json_response(deleted, self._core.new_id("req"))
        if asked == ("POST", "cancel"):
            self.batches.cancel(batch)
        elif asked != ("GET", ""):
            raise ApiError("not_found_error", "Not Found")
        return _json_response(batch.as_dict(_url(request)), self._core.new_id("req"))

    async def stop(self) -> None:
        """Stop working on batches."""
        await self.batches.stop()

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        self._account(request)
        page = list_models(self._core.config.models, request.query)
        return _json_response(page, self._core.new_id("req"))

    def _model(self, request: web.BaseRequest) -> web.StreamResponse:
        self._account(request)
        name = request.path.removeprefix("/v1/models/")
        found = self._core.config.find_model(name)
        if found is None:
            raise ApiError("not_found_error", f"model: {name}")
        return _json_response(model_info(*found), self._core.new_id("req"))

    async def _state(self, request: web.BaseRequest) -> web.StreamResponse:
        last = request.query.get("last", "")
        state = self._core.state(int(last) if last.isdecimal() else None)
        state["batches"] = self.batches.state()
        return _json_response(state, self._core.new_id("req"))

    async def _reset(self, request: web.BaseRequest) -> web.StreamResponse:
        self._core.reset()
        self.batches.reset()
        return _json_response({}, self._core.new_id("req"))

    async def _add_fault(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            queued = QueuedFault.model_validate_json(await self._read(request))
        except ValidationError as error:
            raise invalid("fault", first_problem(error)) from error
        self._core.faults.add(Fault(**queued.model_dump(exclude={"count"})), queued.count)
        return _json_response({"queued": self._core.faults.queued}, self._core.new_id("req"))

    async def _forget_faults(self, _request: web.BaseRequest) -> web.StreamResponse:
        self._core.faults.forget()
        return _json_response({"queued": 0}, self._core.new_id("req"))


def _url(request: web.BaseRequest) -> str:
    return f"{request.scheme}://{request.host}"


def _json_response(value: Any, request_id: str) -> web.Response:
    return web.Response(
        body=to_json(value),
        headers={"request-id": request_id},
        content_type="application/json",
    )


def _error_response(error: ApiError, request_id: str) -> web.Response:
    return web.Response(
        status=error.status,
        body=to_json(error.body(request_id)),
        headers={**error.headers, "request-id": request_id},
        content_type="application/json",
    )
