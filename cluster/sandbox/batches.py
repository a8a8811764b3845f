"""Message Batches: taken, worked off after a while, kept; HTTP is elsewhere.

As at the real API a request's parameters are checked when it is its turn: a wrong one is an
`errored` result, while a wrong shape of the batch itself is refused at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

import structlog
from pydantic_core import to_json

from agentcloud.cluster.sandbox.calls import CallRecord
from agentcloud.cluster.sandbox.core import SandboxCore, parse_body
from agentcloud.cluster.sandbox.errors import ApiError, invalid
from agentcloud.cluster.sandbox.settings import FaultKind
from agentcloud.cluster.sandbox.stream import message_dict

log = structlog.get_logger()

PATH: Final = "/v1/messages/batches"
_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MAX_PAGE: Final = 1000


@dataclass(slots=True)
class Batch:
    """One batch of an account; times are Unix seconds."""

    id: str
    account: str
    requests: list[tuple[str, Mapping[str, Any]]]
    created_s: float
    expires_s: float
    cancelled_s: float | None = None
    ended_s: float | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def as_dict(self, url: str) -> dict[str, Any]:
        """As the API shows it; `url` is the server's."""
        ended = self.ended_s is not None
        counts = dict.fromkeys(("canceled", "errored", "expired", "succeeded"), 0)
        if ended:
            for result in self.results.values():
                counts[result["type"]] += 1
        status = "ended" if ended else "in_progress" if self.cancelled_s is None else "canceling"
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {
                **counts,
                "processing": 0 if ended else len(self.requests),
            },
            "created_at": _stamp(self.created_s),
            "expires_at": _stamp(self.expires_s),
            "ended_at": _stamp(self.ended_s),
            "cancel_initiated_at": _stamp(self.cancelled_s),
            "archived_at": None,
            "results_url": f"{url}{PATH}/{self.id}/results" if ended else None,
        }


class Batches:
    """All batches of a sandbox, by account."""

    def __init__(self, core: SandboxCore) -> None:
        self._core = core
        self._settings = core.config.batches
        self._batches: dict[str, Batch] = {}
        self._rng = Random(core.config.seed)  # noqa: S311 - repeatable order of results

    def __repr__(self) -> str:
        return f"<Batches {len(self._batches)}>"

    async def create(self, body: bytes, account: str) -> Batch:
        """Take a batch and begin to work it off.

        Raises:
            ApiError: its shape is wrong, or it is too large.
        """
        if len(body) > self._settings.max_bytes:
            raise ApiError(
                "request_too_large", "Request exceeds the maximum allowed number of bytes."
            )
        requests = self._checked(parse_body(body))
        now_s = self._core.wall_s()
        batch = Batch(
            self._core.new_id("msgbatch"),
            account,
            requests,
            now_s,
            now_s + self._settings.expires_s,
        )
        self._batches[batch.id] = batch
        batch.task = asyncio.create_task(self._work(batch))
        return batch

    def get(self, batch_id: str, account: str) -> Batch:
        """A batch of an account.

        Raises:
            ApiError: the account has none of that id.
        """
        batch = self._batches.get(batch_id)
        if batch is None or batch.account != account:
            raise ApiError("not_found_error", f"batch: {batch_id}")
        return batch

    def results(self, batch: Batch) -> bytes:
        """Its results, a line each, in no order.

        Raises:
            ApiError: it has not ended.
        """
        if batch.ended_s is None:
            raise ApiError("not_found_error", f"batch {batch.id} has no results yet")
        lines = [
            to_json({"custom_id": custom_id, "result": result}) + b"\n"
            for custom_id, result in batch.results.items()
        ]
        self._rng.shuffle(lines)
        return b"".join(lines)

    def cancel(self, batch: Batch) -> None:
        """Stop working on it; what is not answered will be `canceled`.

        Raises:
            ApiError: it has ended.
        """
        if batch.ended_s is not None:
            raise invalid("batch", f"{batch.id} has ended and cannot be canceled")
        if batch.cancelled_s is None:
            batch.cancelled_s = self._core.wall_s()
            self._end(batch, "canceled")

    def delete(self, batch: Batch) -> None:
        """Forget it.

        Raises:
            ApiError: it has not ended.
        """
        if batch.ended_s is None:
            raise invalid("batch", f"{batch.id} is being processed; cancel it first")
        del self._batches[batch.id]

    def page(self, account: str, query: Mapping[str, str], url: str) -> dict[str, Any]:
        """One page of an account's batches, the newest first.

        Raises:
            ApiError: `limit` is not a number from 1 to 1000, or a cursor names no batch.
        """
        mine = [batch for batch in reversed(self._batches.values()) if batch.account == account]
        ids = [batch.id for batch in mine]
        limit = query.get("limit", "20")
        if not limit.isdecimal() or not 1 <= int(limit) <= _MAX_PAGE:
            raise invalid("limit", f"Input should be from 1 to {_MAX_PAGE}")
        size, start, end = int(limit), 0, len(mine)
        for name in ("before_id", "after_id"):
            if name in query and query[name] not in ids:
                raise invalid(name, f"no batch {query[name]}")
        if "before_id" in query:
            end = ids.index(query["before_id"])
            start = max(0, end - size)
            has_more = start > 0
        else:
            if "after_id" in query:
                start = ids.index(query["after_id"]) + 1
            has_more = start + size < end
            end = min(end, start + size)
        page = mine[start:end]
        return {
            "data": [batch.as_dict(url) for batch in page],
            "has_more": has_more,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }

    def state(self) -> list[dict[str, Any]]:
        """For GET /sandbox/state."""
        return [
            {
                "id": batch.id,
                "account": batch.account,
                "custom_ids": [custom_id for custom_id, _ in batch.requests],
                "status": batch.as_dict("")["processing_status"],
                "request_counts": batch.as_dict("")["request_counts"],
            }
            for batch in self._batches.values()
        ]

    async def stop(self) -> None:
        """Stop working on all."""
        tasks = [each.task for each in self._batches.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def reset(self) -> None:
        """Forget all."""
        for batch in self._batches.values():
            if batch.task is not None:
                batch.task.cancel()
        self._batches.clear()

    def _checked(self, params: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
        requests = params.get("requests")
        if not isinstance(requests, list) or not requests:
            raise invalid("requests", "Input should be a non-empty list")
        if len(requests) > self._settings.max_requests:
            raise ApiError(
                "request_too_large",
                f"A batch may hold at most {self._settings.max_requests} requests.",
            )
        found: dict[str, Mapping[str, Any]] = {}
        for index, request in enumerate(requests):
            where = f"requests.{index}"
            if not isinstance(request, Mapping):
                raise invalid(where, "Input should be a valid dictionary")
            custom_id, inner = request.get("custom_id"), request.get("params")
            if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
                raise invalid(
                    f"{where}.custom_id", f"String should match pattern '^{_CUSTOM_ID.pattern}$'"
                )
            if custom_id in found:
                raise invalid(f"{where}.custom_id", f"{custom_id} is not unique in the batch")
            if not isinstance(inner, Mapping):
                raise invalid(f"{where}.params", "Field required")
            found[custom_id] = inner
        return list(found.items())

    async def _work(self, batch: Batch) -> None:
        """Answer every request, then end; nothing shows before."""
        await self._core.clock.sleep(min(self._settings.takes_s, self._settings.expires_s))
        if self._settings.takes_s >= self._settings.expires_s:
            self._end(batch, "expired")
            return
        for custom_id, params in batch.requests:
            if batch.ended_s is not None:
                return
            batch.results.setdefault(custom_id, await self._answer(batch, params))
        self._end(batch, "expired")

    def _end(self, batch: Batch, rest: str) -> None:
        """End a batch; what has no answer gets the result `rest`."""
        if batch.ended_s is not None:
            return
        for custom_id, _ in batch.requests:
            batch.results.setdefault(custom_id, {"type": rest})
        batch.ended_s = self._core.wall_s()
        batch.requests = [(custom_id, {}) for custom_id, _ in batch.requests]

    async def _answer(self, batch: Batch, params: Mapping[str, Any]) -> dict[str, Any]:
        record = CallRecord(
            number=0,
            at_s=self._core.wall_s(),
            path=PATH,
            account=batch.account,
            request_id=self._core.new_id("req"),
            body_sha256="",
        )
        try:
            if params.get("stream"):
                raise invalid("stream", "Streaming is not supported in batches")
            outcome = await self._core.answer(to_json(params), record, None, batch=True)
            if outcome.fault is not None and outcome.fault.kind is FaultKind.EXPIRED:
                return {"type": "expired"}
            message = message_dict(outcome.message_id, outcome.model, outcome.answer, outcome.usage)
            message["usage"]["service_tier"] = "batch"
            return {"type": "succeeded", "message": message}
        except ApiError as error:
            return {"type": "errored", "error": error.body(record.request_id)}
        except Exception:
            log.exception("sandbox failed on a request of a batch", batch=batch.id)
            failure = ApiError("api_error", "Internal server error")
            return {"type": "errored", "error": failure.body(record.request_id)}


def _stamp(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat()
