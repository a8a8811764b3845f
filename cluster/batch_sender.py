"""The API's side of the batcher: batches are sent, polled, fetched, cancelled.

What was sent is written down before it is sent; what is asked about it afterwards is asked until
there is an answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from agentcloud.cluster.batch_book import Batch, BatchBook, Call
from agentcloud.cluster.batch_store import BatchStore
from agentcloud.cluster.clock import Clock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.errors import BackendError, BatchFailed, ConnectionFailed
from agentcloud.cluster.hosted_batches import AccountBatches, Result, took_s
from agentcloud.cluster.retry import HEALTH_KINDS, RATE_LIMIT_KIND

log = structlog.get_logger()

#: Results are written and delivered in portions.
_PORTION: Final = 500
_POLL_GROWTH: Final = 1.5
#: Seconds for cancellations when it is stopped.
STOP_S: Final = 5.0


class BatchSender:
    """Does what is to be done about each batch, a task each.

    Args:
        config: fleet.yaml.
        book: the calls and batches.
        store: the same on disk.
        clock: the time seam.
        look_after_s: pauses before each look for a batch whose creation was not answered.
    """

    def __init__(
        self,
        config: FleetConfig,
        book: BatchBook,
        store: BatchStore,
        clock: Clock,
        look_after_s: tuple[float, ...],
    ) -> None:
        self.accounts = {
            name: AccountBatches(name, config.accounts[name])
            for name in {hosted.account for hosted in config.hosted.values() if hosted.batch}
        }
        self._settings = config.batch
        self._book = book
        self._store = store
        self._clock = clock
        self._look_after_s = look_after_s
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<BatchSender {len(self._tasks)} at work>"

    def begin(self, account: str, bodies: list[tuple[str, bytes]]) -> None:
        """Send calls, custom id and body each, as one batch."""
        calls = [call for custom_id, _ in bodies if (call := self._book.calls.get(custom_id))]
        batch = self._book.open_batch(account, calls, time.time())
        self._begin(batch, self._send_new(batch, calls, bodies))

    def go_on(self, batch: Batch) -> None:
        """Go on with a batch of an earlier batcher."""
        work = self._poll(batch) if batch.batch_id is not None else self._resume(batch)
        self._begin(batch, work)

    def cancel_unwanted(self) -> None:
        """Cancel the batches that nobody waits for."""
        for batch in self._book.batches.values():
            if batch.is_unwanted and not batch.cancelling and batch.batch_id is not None:
                batch.cancelling = True
                if batch.task is not None:
                    batch.task.cancel()
                self._begin(batch, self._cancel(batch))

    async def stop(self) -> None:
        """Stop, once the cancellations under way have been told."""
        self.cancel_unwanted()
        cancels = [each.task for each in self._book.batches.values() if each.is_unwanted]
        if pending := [task for task in cancels if task is not None]:
            await asyncio.wait(pending, timeout=STOP_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for account in self.accounts.values():
            await account.close()

    def _begin(self, batch: Batch, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except BackendError as error:
                await self._fail(batch, error)
            except Exception as error:
                log.exception("a batch failed", batch=batch.batch_id)
                why = f"{batch.account}: the batcher failed ({type(error).__name__})"
                paid = batch.batch_id is not None
                await self._fail(batch, ConnectionFailed(why, maybe_paid=paid))

        task = asyncio.create_task(guarded())
        batch.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_new(
        self, batch: Batch, calls: list[Call], bodies: list[tuple[str, bytes]]
    ) -> None:
        by_id = dict(bodies)
        rows = [(self._book.row(call), by_id[call.custom_id]) for call in calls]
        await self._store.begin(batch.row(), rows)
        await self._send(batch, bodies)

    async def _resume(self, batch: Batch) -> None:
        """Go on with a batch that may have been sent before its batcher ended."""
        batch_id = await self._find(batch)
        if batch_id is None:
            await self._send(batch, await self._store.bodies(batch.key))
        else:
            await self._sent(batch, batch_id)

    async def _send(self, batch: Batch, bodies: list[tuple[str, bytes]]) -> None:
        wanted = [(custom_id, body) for custom_id, body in bodies if custom_id in batch.wanted]
        batch.requests = len(wanted)
        if not wanted:
            await self._end(batch)
            return
        try:
            batch_id = await self.accounts[batch.account].create(wanted)
        except BackendError as error:
            if error.kind == "request_too_large" and len(wanted) > 1:
                await self._split(batch, wanted)
                return
            if not error.maybe_paid:
                raise
            log.warning("a batch's creation was not answered", why=str(error))
            found = await self._find(batch)
            if found is None:  # it is known now that nothing was made
                error.maybe_paid = False
                raise
            batch_id = found
        await self._sent(batch, batch_id)

    async def _sent(self, batch: Batch, batch_id: str) -> None:
        batch.batch_id = batch_id
        await self._store.sent(batch.key, batch_id)
        log.info("batch sent", batch=batch_id, account=batch.account, calls=batch.requests)
        await self._poll(batch)

    async def _find(self, batch: Batch) -> str | None:
        account = self.accounts[batch.account]

        async def look() -> str | None:
            known = frozenset(each.batch_id or "" for each in self._book.batches.values())
            return await account.find(batch.requests, batch.sent_unix_s, known)

        for pause_s in self._look_after_s:
            await self._clock.sleep(pause_s)
            found: str | None = await self._insist(look)
            if found is not None:
                return found
        return None

    async def _poll(self, batch: Batch) -> None:
        account = self.accounts[batch.account]
        batch_id = batch.batch_id or ""
        pause_s = self._settings.poll_s
        while True:
            await self._clock.sleep(pause_s)
            pause_s = min(self._settings.max_poll_s, pause_s * _POLL_GROWTH)
            told = await self._insist(lambda: account.retrieve(batch_id))
            if told.processing_status == "ended":
                break
        batch.ended = True
        await self._insist(lambda: self._fetch(batch, took_s(told)))
        await self._end(batch)

    async def _fetch(self, batch: Batch, took: float | None) -> None:
        """Write the results down and deliver them; told twice, it goes on with what is missing."""
        account = self.accounts[batch.account]
        portion: list[Result] = []
        async for result in account.results(batch.batch_id or ""):
            portion.append(result)
            if len(portion) == _PORTION:
                await self._take_in(batch, portion, took)
                portion = []
        await self._take_in(batch, portion, took)
        for custom_id in list(batch.wanted):
            call = self._book.calls[custom_id]
            why = f"{call.endpoint}: batch {batch.batch_id} holds no result for the call"
            self._book.answer(call, None, BatchFailed(why, endpoint=call.endpoint))

    async def _take_in(self, batch: Batch, portion: list[Result], took: float | None) -> None:
        mine = [result for result in portion if result.custom_id in batch.wanted]
        answers = [(each.custom_id, each.message) for each in mine if each.message is not None]
        await self._store.answered(answers, took, time.time())
        for result in mine:
            call = self._book.calls.get(result.custom_id)
            if call is not None and result.custom_id in batch.wanted:  # not given up meanwhile
                call.took_s = took
                self._book.answer(call, result.message, result.error)

    async def _cancel(self, batch: Batch) -> None:
        account = self.accounts[batch.account]
        log.info("batch cancelled, nobody waits for it", batch=batch.batch_id)
        await self._insist(lambda: account.cancel(batch.batch_id or ""))
        await self._end(batch)

    async def _fail(self, batch: Batch, error: BackendError) -> None:
        """Give every call of a batch that was not sent, or is lost, its error."""
        if batch.batch_id is not None:
            # It was sent and is lost: somebody deleted it, or we failed. Not the endpoint's fault.
            error = ConnectionFailed(error.message, maybe_paid=True)
        elif error.kind in (*HEALTH_KINDS, RATE_LIMIT_KIND):
            # No reason to pay the full price elsewhere for what can wait, but one to wait.
            rest_s = max(error.retry_after_s or 0.0, self._settings.max_poll_s)
            error = BatchFailed(error.message, retry_after_s=rest_s, kind="api_error", status=500)
        for call in [self._book.calls[custom_id] for custom_id in batch.wanted]:
            self._book.answer(call, None, _copy(error, call.endpoint))
        await self._end(batch)

    async def _split(self, batch: Batch, bodies: list[tuple[str, bytes]]) -> None:
        """Send a batch that the API finds too large as two."""
        await self._end(batch)
        half = len(bodies) // 2
        for part in (bodies[:half], bodies[half:]):
            self.begin(batch.account, part)

    async def _end(self, batch: Batch) -> None:
        batch.ended = True
        self._book.close_batch(batch)
        await self._store.forget_batch(batch.key)

    async def _insist(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Ask about what is sent already until there is an answer; that is no send of a call.

        Raises:
            BackendError: the API knows no such batch.
        """
        pause_s = self._settings.poll_s
        while True:
            try:
                return await ask()
            except BackendError as error:
                if error.status in (400, 404):
                    raise
                log.warning("cannot ask about a batch, asking again", why=str(error))
            await self._clock.sleep(pause_s)
            pause_s = min(self._settings.max_poll_s, pause_s * _POLL_GROWTH)


def _copy(error: BackendError, endpoint: str) -> BackendError:
    """The error for one of its callers: each changes its own."""
    copied = type(error)(
        error.message,
        endpoint=endpoint,
        kind=error.kind,
        status=error.status,
        maybe_paid=error.maybe_paid,
        headers=error.headers,
    )
    copied.retry_after_s = error.retry_after_s
    return copied
