"""Message Batches of one account, through the anthropic client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from anthropic import AsyncAnthropic
from anthropic.types.messages import MessageBatch, MessageBatchResult
from pydantic_core import to_json

from agentcloud.cluster.config_models import Account
from agentcloud.cluster.errors import BackendError, BatchFailed, ConfigError, Unusable
from agentcloud.cluster.hosted_clients import ClientPool
from agentcloud.cluster.hosted_errors import of_body, translate
from agentcloud.cluster.retry import HEALTH_KINDS, RATE_LIMIT_KIND

#: A request's share of a batch's body beside its parameters, with room to spare.
WRAPPING_BYTES: Final = 128
_BATCHES: Final = "/v1/messages/batches"
#: A batch may be 256 MB, and its results more.
_TRANSFER_S: Final = 600.0
_CONTROL_S: Final = 60.0
#: Clocks of ours and the API's may differ so much.
_SKEW_S: Final = 120.0
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Result:
    """One request's result: its message as JSON, or the error for its caller."""

    custom_id: str
    message: bytes | None = None
    error: BackendError | None = None


class AccountBatches:
    """The batches of one account. Raises `BackendError`s only."""

    def __init__(self, name: str, account: Account, *, where: str = "fleet.yaml: accounts") -> None:
        self._name = name
        self._clients = ClientPool(account, f"{where}.{name}")

    def __repr__(self) -> str:
        return f"AccountBatches({self._name})"

    async def create(self, requests: Iterable[tuple[str, bytes]]) -> str:
        """Send a batch of `(custom_id, parameters as JSON)`; returns its id.

        Raises:
            BackendError: `maybe_paid` where the batch may have been made all the same.
        """
        inner = b",".join(
            b'{"custom_id":' + to_json(custom_id) + b',"params":' + body + b"}"
            for custom_id, body in requests
        )
        try:
            # As `messages.batches.create` does, without taking every request apart again.
            batch: MessageBatch = await self._client().post(
                _BATCHES,
                content=b'{"requests":[' + inner + b"]}",
                cast_to=MessageBatch,
                options={"timeout": _TRANSFER_S, "headers": {"content-type": "application/json"}},
            )
        except Exception as error:
            raise self._translated(error, _TRANSFER_S) from error
        return batch.id

    async def retrieve(self, batch_id: str) -> MessageBatch:
        """A batch as it stands."""
        try:
            return await self._client().messages.batches.retrieve(batch_id, timeout=_CONTROL_S)
        except Exception as error:
            raise self._translated(error, _CONTROL_S) from error

    async def results(self, batch_id: str) -> AsyncIterator[Result]:
        """What became of each request of an ended batch, in any order."""
        try:
            rows = await self._client().messages.batches.results(batch_id, timeout=_TRANSFER_S)
            async for row in rows:
                yield _result(row.custom_id, row.result, f"{self._name}: batch {batch_id}")
        except Exception as error:
            raise self._translated(error, _TRANSFER_S) from error

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch: what is not answered yet costs nothing."""
        try:
            await self._client().messages.batches.cancel(batch_id, timeout=_CONTROL_S)
        except Exception as error:
            raise self._translated(error, _CONTROL_S) from error

    async def find(self, requests: int, since_unix_s: float, known: frozenset[str]) -> str | None:
        """The id of a batch that was sent and whose answer was lost; None: it was never made.

        The API does not tell a batch's custom ids before it has ended: the oldest batch of that
        size is taken, made since then and not known as another one of ours. Should it be a
        stranger's, its results will show it.
        """
        found = None
        try:
            page = await self._client().messages.batches.list(limit=_PAGE, timeout=_CONTROL_S)
            async for batch in page:
                if batch.created_at.timestamp() < since_unix_s - _SKEW_S:
                    break
                counts = batch.request_counts
                total = sum(
                    (
                        counts.processing,
                        counts.succeeded,
                        counts.errored,
                        counts.expired,
                        counts.canceled,
                    )
                )
                if total == requests and batch.id not in known:
                    found = batch.id
        except Exception as error:
            raise self._translated(error, _CONTROL_S) from error
        return found

    async def close(self) -> None:
        """Let go of the account's client."""
        await self._clients.close()

    def _client(self) -> AsyncAnthropic:
        try:
            return self._clients.get()
        except ConfigError as error:
            raise Unusable(str(error), endpoint=self._name) from error

    def _translated(self, error: Exception, timeout_s: float) -> BackendError:
        if isinstance(error, BackendError):
            return error
        return translate(error, f"{self._name}: batches", timeout_s=timeout_s, began=False)


def took_s(batch: MessageBatch) -> float | None:
    """Seconds from a batch's creation to its end; None: it has not ended."""
    ended: datetime | None = batch.ended_at
    return None if ended is None else (ended - batch.created_at).total_seconds()


def _result(custom_id: str, result: MessageBatchResult, endpoint: str) -> Result:
    # Four cases: answered; the API's error for this request; it ran out of its 24 hours, or
    # somebody cancelled the batch (both cost nothing and may be tried again).
    if result.type == "succeeded":
        return Result(custom_id, to_json(result.message.to_dict()))
    if result.type == "errored":
        body = result.error.to_dict()
        error = of_body(body, {}, endpoint, began=False)
        if error.kind in (*HEALTH_KINDS, RATE_LIMIT_KIND):
            error = BatchFailed(error.message, endpoint=endpoint, kind="api_error", status=500)
        return Result(custom_id, error=error)
    what = "expired before it was answered" if result.type == "expired" else "was cancelled"
    kind = "timeout_error" if result.type == "expired" else "api_error"
    return Result(
        custom_id,
        error=BatchFailed(f"{endpoint}: its batch {what}", endpoint=endpoint, kind=kind),
    )
