"""Collects the calls that can wait of all processes, sends them as batches, brings answers back.

One a cluster (`batcher_actor.py`). What was sent is on disk before it is sent (`batch_store.py`).
A process that falls silent leaves its calls behind: sent ones go on, and a call alike of another
process takes them over, so a job that is run again after a crash pays nothing twice. A process
that gives a call up says so: what was not sent is dropped, and a batch that nobody wants any more
is cancelled.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from agentcloud.cluster.batch_book import Batch, BatchBook, Call
from agentcloud.cluster.batch_store import BatchStore
from agentcloud.cluster.batch_wire import Ask, Delivery, Tell, Told
from agentcloud.cluster.clock import Clock, SystemClock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.errors import BackendError, BatchFailed, ConnectionFailed, InvalidRequest
from agentcloud.cluster.hosted_batches import WRAPPING_BYTES, AccountBatches, Result, took_s
from agentcloud.cluster.packing import Packer
from agentcloud.cluster.retry import HEALTH_KINDS, RATE_LIMIT_KIND

log = structlog.get_logger()

#: A process that says nothing for so long is dead.
HOLDER_TIMEOUT_S: Final = 15.0
#: At most so many deliveries, and about so many bytes of them, in one exchange.
_MOST_DELIVERIES: Final = 2000
_MOST_DELIVERED_BYTES: Final = 32_000_000
#: Results are written and delivered in portions.
_PORTION: Final = 500
#: Nothing else is looked at less often.
_LOOK_S: Final = 1.0
#: Pauses before each look for a batch whose creation was not answered.
LOOK_AFTER_S: Final = (1.0, 3.0, 9.0)
_POLL_GROWTH: Final = 1.5
#: Seconds for cancellations when it is stopped.
STOP_S: Final = 5.0


class Batcher:
    """The batcher of a cluster.

    Guarantees: a call is in one batch that the API took, at most; its result is delivered until it
    is acknowledged, also by a batcher that started again; only `BackendError`s are delivered.
    """

    def __init__(
        self,
        config: FleetConfig,
        store: BatchStore,
        *,
        session: str,
        clock: Clock | None = None,
        holder_timeout_s: float = HOLDER_TIMEOUT_S,
        look_after_s: tuple[float, ...] = LOOK_AFTER_S,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            config: fleet.yaml.
            store: what an earlier one left.
            session: of Ray: processes of another session are certainly dead.
            clock: the time seam.
            holder_timeout_s: a process that is silent for so long is dead.
            look_after_s: pauses before each look for a batch whose creation was not answered.
        """
        self._settings = config.batch
        self._store = store
        self._clock = clock or SystemClock()
        self._look_after_s = look_after_s
        self._epoch = uuid.uuid4().hex
        self._accounts = {
            name: AccountBatches(name, config.accounts[name])
            for name in {hosted.account for hosted in config.hosted.values() if hosted.batch}
        }
        self._book = BatchBook(session, holder_timeout_s)
        self._packer = Packer(
            max_requests=self._settings.max_requests,
            max_bytes=self._settings.max_bytes,
            linger_s=self._settings.linger_s,
            longest_s=10 * self._settings.linger_s,
        )
        self._bodies: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Batcher {self._book!r} unsent={len(self._packer)}>"

    async def start(self) -> None:
        """Read what an earlier batcher left and go on with it."""
        batches, calls = await self._store.load()
        keep_from_s = time.time() - self._settings.keep_s
        old = [
            each.custom_id
            for each in calls
            if each.ended and (each.ended_unix_s or 0.0) < keep_from_s
        ]
        await self._store.forget_calls(old)
        self._book.restore(batches, calls, frozenset(old), self._clock.now())
        for batch in list(self._book.batches.values()):
            self._go_on(batch)
        self._main = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; batches that nobody wants are cancelled first, the others go on at the API."""
        if self._main is not None:
            self._main.cancel()
        self._cancel_unwanted()
        cancels = [each.task for each in self._book.batches.values() if each.is_unwanted]
        if pending := [task for task in cancels if task is not None]:
            await asyncio.wait(pending, timeout=STOP_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for account in self._accounts.values():
            await account.close()
        self._store.close()

    # -- the processes' side

    async def exchange(self, tell: Tell) -> Told:
        """As `BatchPort.exchange`."""
        now_s = self._clock.now()
        number = self._book.heard(tell.holder, now_s)
        over = [call for ask_id in tell.acks if (call := self._book.acked(tell.holder, ask_id))]
        await self._store.forget_calls([call.custom_id for call in over])
        dropped = [call for ask_id in tell.drops if (call := self._book.by_ask.get(ask_id))]
        await self._give_up([call for call in dropped if call.holder == tell.holder])
        for ask_id in tell.drops:
            self._book.forget_ask(tell.holder, ask_id)
        for ask in tell.asks:
            await self._take(ask, tell.holder, now_s)
        if tell.asks or tell.drops:
            self._wake.set()
        deliveries, size_bytes = [], 0
        for delivery in self._book.outbox(tell.holder):
            deliveries.append(delivery)
            size_bytes += len(delivery.message or b"")
            if len(deliveries) == _MOST_DELIVERIES or size_bytes > _MOST_DELIVERED_BYTES:
                break
        return Told(f"{self._epoch}:{number}", deliveries)

    async def leave(self, holder: str) -> None:
        """As `BatchPort.leave`."""
        await self._give_up(self._book.of_holder(holder))
        self._book.remove_holder(holder)
        self._wake.set()

    async def snapshot(self) -> dict[str, Any]:
        """What it holds, to look at."""
        return self._book.snapshot() | {"unsent": len(self._packer)}

    async def _take(self, ask: Ask, holder: str, now_s: float) -> None:
        # Four cases: told before; a call alike was left behind by a process that is gone; one
        # alike belongs to a process that may be gone (wait until that is known); a new call.
        known = self._book.by_ask.get(ask.ask_id)
        if known is not None:
            self._book.own(known, ask.ask_id, holder)
            if known.ended and not self._book.is_delivered(known):
                await self._deliver_kept(known)
        elif (left := self._book.left_behind(ask)) is not None:
            await self._take_over(left, ask, holder)
        elif not self._book.doubt(ask, holder, now_s):
            self._add(ask, holder, now_s)

    def _add(self, ask: Ask, holder: str, now_s: float) -> None:
        if ask.account not in self._accounts:
            error = InvalidRequest(
                f"{ask.endpoint}: account {ask.account} sends no batches; set `batch: true` at the "
                f"hosted model in fleet.yaml and start the fleet again",
                endpoint=ask.endpoint,
            )
            self._book.deliver(holder, Delivery(ask.ask_id, error=error))
            return
        call = self._book.add(ask, holder)
        self._bodies[call.custom_id] = ask.body
        self._packer.add(ask.account, call.custom_id, len(ask.body) + WRAPPING_BYTES, now_s)

    async def _take_over(self, call: Call, ask: Ask, holder: str) -> None:
        log.info("a call takes over what was sent before", call=ask.ask_id, was=call.ask_id)
        call.taken_over = True
        self._book.own(call, ask.ask_id, holder)
        await self._store.give(call.custom_id, ask.ask_id, holder, self._book.session)
        if call.ended:
            await self._deliver_kept(call)

    async def _deliver_kept(self, call: Call) -> None:
        message = await self._store.message(call.custom_id)
        if message is not None:
            self._book.answer(call, message, None)

    async def _give_up(self, unwanted: list[Call]) -> None:
        """Drop calls that nobody wants; a batch of none but such is cancelled."""
        for call in unwanted:
            self._packer.remove(call.custom_id)
            self._bodies.pop(call.custom_id, None)
            self._book.drop(call)
        await self._store.forget_calls([call.custom_id for call in unwanted if call.batch_key])

    # -- the API's side

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("the batcher failed on a look at its calls")
            now_s = self._clock.now()
            due_s = self._packer.next_due_s()
            wait_s = _LOOK_S if due_s is None else min(_LOOK_S, max(0.0, due_s - now_s))
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _look(self) -> None:
        """Do all that is due."""
        now_s = self._clock.now()
        for holder in self._book.silent(now_s):
            log.warning("process is silent, its calls are left behind", holder=holder)
            left = self._book.leave_behind(holder)
            await self._give_up([call for call in left if call.batch_key is None])
        for ask, holder in self._book.take_cleared():
            if (behind := self._book.left_behind(ask)) is not None:
                await self._take_over(behind, ask, holder)
            else:
                self._add(ask, holder, now_s)
        for pack in self._packer.take_due(now_s):
            calls = [self._book.calls[custom_id] for custom_id in pack.keys]
            batch = self._book.open_batch(pack.lane, calls, time.time())
            self._begin(batch, self._send_new(batch, calls))
        self._cancel_unwanted()

    def _cancel_unwanted(self) -> None:
        for batch in self._book.batches.values():
            if batch.is_unwanted and not batch.cancelling and batch.batch_id is not None:
                batch.cancelling = True
                if batch.task is not None:
                    batch.task.cancel()
                self._begin(batch, self._cancel(batch))

    def _go_on(self, batch: Batch) -> None:
        work = self._poll(batch) if batch.batch_id is not None else self._resume(batch)
        self._begin(batch, work)

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

    async def _send_new(self, batch: Batch, calls: list[Call]) -> None:
        bodies = [(call.custom_id, self._bodies.pop(call.custom_id, b"")) for call in calls]
        rows = [(self._book.row(call), body) for call, (_, body) in zip(calls, bodies, strict=True)]
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
            batch_id = await self._accounts[batch.account].create(wanted)
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
        account = self._accounts[batch.account]

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
        account = self._accounts[batch.account]
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
        account = self._accounts[batch.account]
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
        account = self._accounts[batch.account]
        log.info("batch cancelled, nobody waits for it", batch=batch.batch_id)
        await self._insist(lambda: account.cancel(batch.batch_id or ""))
        await self._end(batch)

    async def _fail(self, batch: Batch, error: BackendError) -> None:
        """Give every call of a batch that was not sent, or is lost, its error."""
        if not error.maybe_paid and error.kind in (*HEALTH_KINDS, RATE_LIMIT_KIND):
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
            self._bodies.update(part)
            calls = [call for custom_id, _ in part if (call := self._book.calls.get(custom_id))]
            smaller = self._book.open_batch(batch.account, calls, time.time())
            self._begin(smaller, self._send_new(smaller, calls))

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
