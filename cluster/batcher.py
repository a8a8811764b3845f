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
from typing import Any, Final

import structlog

from agentcloud.cluster.batch_book import BatchBook, Call
from agentcloud.cluster.batch_sender import BatchSender
from agentcloud.cluster.batch_store import BatchStore
from agentcloud.cluster.batch_wire import Ask, Delivery, Tell, Told
from agentcloud.cluster.clock import Clock, SystemClock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.errors import InvalidRequest
from agentcloud.cluster.hosted_batches import WRAPPING_BYTES
from agentcloud.cluster.packing import Packer

log = structlog.get_logger()

#: A process that says nothing for so long is dead.
HOLDER_TIMEOUT_S: Final = 15.0
#: At most so many deliveries, and about so many bytes of them, in one exchange.
_MOST_DELIVERIES: Final = 2000
_MOST_DELIVERED_BYTES: Final = 32_000_000
#: Nothing else is looked at less often.
_LOOK_S: Final = 1.0
#: Pauses before each look for a batch whose creation was not answered.
LOOK_AFTER_S: Final = (1.0, 3.0, 9.0)


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
        self._epoch = uuid.uuid4().hex
        self._book = BatchBook(session, holder_timeout_s)
        self._sender = BatchSender(config, self._book, store, self._clock, look_after_s)
        self._packer = Packer(
            max_requests=self._settings.max_requests,
            max_bytes=self._settings.max_bytes,
            linger_s=self._settings.linger_s,
            longest_s=10 * self._settings.linger_s,
        )
        self._bodies: dict[str, bytes] = {}
        self._wake = asyncio.Event()
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
            self._sender.go_on(batch)
        self._main = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; batches that nobody wants are cancelled first, the others go on at the API."""
        if self._main is not None:
            self._main.cancel()
        await self._sender.stop()
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
        if ask.account not in self._sender.accounts:
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

    # -- the loop

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
            await self._give_up([call for call in left if not self._book.is_coming(call)])
        for ask, holder in self._book.take_cleared():
            if (behind := self._book.left_behind(ask)) is not None:
                await self._take_over(behind, ask, holder)
            else:
                self._add(ask, holder, now_s)
        for pack in self._packer.take_due(now_s):
            self._sender.begin(pack.lane, [(key, self._bodies.pop(key)) for key in pack.keys])
        self._sender.cancel_unwanted()
