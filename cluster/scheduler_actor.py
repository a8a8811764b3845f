"""The Ray actor around the scheduler's core: it delivers, and keeps time.

Each process sends its requests and settlements in batches and has in the same round trip what can
be decided at once; what must wait reaches it later through one stream per process. A process that
stays silent for `HOLDER_TIMEOUT_S` is dead: what it waits for is dropped and its leases end.

A paid lease is on disk before its holder has it. Calls that cost nothing never wait for the disk.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import ray
import structlog

from agentcloud.cluster.alarm_watch import AlarmWatch
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import SystemClock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    RAY_NAMESPACE,
    SCHEDULER_NAME,
    EndpointKind,
    LeaseRequest,
)
from agentcloud.cluster.decisions import Decision, Granted
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.head_actor import start_on_head
from agentcloud.cluster.journal import Batch, Journal, is_paid
from agentcloud.cluster.leases import Expired
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.metrics import CallMetrics
from agentcloud.cluster.scheduler import (
    SchedulerCore,
)
from agentcloud.cluster.scheduler_control import SchedulerControl
from agentcloud.cluster.scheduler_holders import Holder, Holders
from agentcloud.cluster.scheduler_wire import Exchange, Reply, packed, unpacked
from agentcloud.cluster.store import open_store
from agentcloud.cluster.store_writer import StoreWriter

HOLDER_TIMEOUT_S: Final = 15.0
#: Objects made between two passes of the garbage collector. What the scheduler makes is freed by
#: its count of references; Python's 700 would have it look for cycles after every few calls.
GC_OBJECTS: Final = 20_000
#: A scheduler that has just started is told its endpoints within this.
REJOIN_S: Final = 15.0
_KEEP_ALIVE_S: Final = 5.0
_LONGEST_SLEEP_S: Final = 60.0

log = structlog.get_logger()


@dataclass(slots=True)
class _Turn:
    """What one turn decided: `free` may be told at once, the rest when `batch` is on disk.

    Attributes:
        paid: paid leases of the process whose turn it is.
        others: paid leases of other processes.
    """

    free: list[Decision] = field(default_factory=list)
    paid: list[Decision] = field(default_factory=list)
    others: list[Decision] = field(default_factory=list)
    batch: Batch | None = None


class Scheduler(SchedulerControl):
    """The actor's class: thin, async, restarted by Ray.

    Ray runs each concurrency group of an async actor on an event loop of its own, in its own
    thread: every use of the core holds the lock, for microseconds.
    """

    def __init__(
        self,
        config: FleetConfig,
        *,
        holder_timeout_s: float = HOLDER_TIMEOUT_S,
        fleet: str | None = None,
    ) -> None:
        """Start, or go on where the instance before ended.

        Args:
            config: fleet.yaml.
            holder_timeout_s: a process that is silent for so long is dead.
            fleet: id of the fleet, under which budgets and paid leases are stored; None: nowhere.
        """
        configure_logs(actor=SCHEDULER_NAME)
        gc.set_threshold(GC_OBJECTS)
        self._lock = threading.Lock()
        self._clock = SystemClock()
        self._core = SchedulerCore(
            config,
            load_catalog().with_overrides(config.hosted),
            self._clock,
            random.SystemRandom(),
            time.time,
            Journal() if fleet else None,
        )
        self._epoch = uuid.uuid4().hex
        self._fleet = fleet
        self._refuses_from_s = self._clock.now() + REJOIN_S
        self._told = False
        self._early: dict[str, LeaseRequest] = {}
        self._timer = threading.Condition(self._lock)
        self._wake_s = self._refuses_from_s
        self._holders = Holders(holder_timeout_s)
        self._expired: list[Expired] = []
        self._writer: StoreWriter | None = None
        self._broken: ConfigError | None = None
        if fleet:
            with self._lock:
                self._open_store(config.store, fleet)
        self._metrics = CallMetrics()
        self._metrics.start(self._core, self._lock, self._clock.now)
        self._alarms = AlarmWatch(config.alarms, self._epoch[:6], self._clock.now, time.time)
        self._alarms.start()
        threading.Thread(target=self._keep_time, name="scheduler-time", daemon=True).start()

    def __repr__(self) -> str:
        return SCHEDULER_NAME

    # -- calls

    async def exchange(self, batch: bytes) -> bytes:
        """Take an `Exchange` in; give back a `Reply`: what is decided for its process."""
        exchange = unpacked(batch, Exchange)
        core = self._core
        with self._lock:
            if self._broken is not None:
                raise self._broken
            holder = self._heard(exchange.holder)
            core.adopt(exchange.held)
            for bound in exchange.bound:
                core.bind(bound.lease_id, bound.request)
            for settlement in exchange.settlements:
                if (ended := core.settle(settlement)) is not None:
                    self._metrics.settled(ended, settlement)
                    self._alarms.settled(ended, settlement)
            for lease_id in exchange.warmed:
                core.warmed(lease_id)
            for call_id in exchange.cancels:
                core.cancel(call_id)
                self._early.pop(call_id, None)
            # Those asked too early are submitted in the first turn that has endpoints.
            self._early.update((request.call_id, request) for request in exchange.requests)
            turn = self._turn(exchange.holder)
            mine, holder.outbox = holder.outbox + turn.free, []
            # What must be written first is waited for, unless there is something to tell now.
            on_disk = None
            if turn.paid and not mine:
                on_disk = asyncio.get_running_loop().create_future()
            self._write(turn, holder, exchange.number, on_disk)
            written = holder.written
        if on_disk is not None:
            mine = await on_disk
            written = holder.written
        return packed(Reply(mine, self._epoch, written))

    async def grants(self, name: str) -> AsyncIterator[list[Decision]]:
        """Decisions on requests that had to wait, in batches, until the process leaves."""
        wake = asyncio.Event()
        with self._lock:
            holder = self._heard(name)
            holder.listen(wake)
        while True:
            with self._lock:
                # Ended: the process left or died, or it has opened another stream.
                if not (self._holders.knows(name, holder) and holder.listens(wake)):
                    return
                batch, holder.outbox = holder.outbox, []
                wake.clear()
            if batch:
                yield batch
                continue
            try:
                await asyncio.wait_for(wake.wait(), _KEEP_ALIVE_S)
            except TimeoutError:
                continue

    async def leave(self, name: str) -> None:
        """A process ends: what it waits for is dropped, its open leases end."""
        with self._lock:
            self._drop(name)
            self._turn(None)

    # -- under the lock

    def _heard(self, name: str) -> Holder:
        now_s = self._clock.now()
        self._wake_by(now_s + self._holders.timeout_s)
        return self._holders.heard(name, now_s)

    def _drop(self, name: str) -> None:
        self._holders.drop(name)
        self._early = {key: each for key, each in self._early.items() if each.holder != name}
        self._expired.extend(self._core.drop_holder(name))

    def _changed(self) -> None:
        self._turn(None)

    def _turn(self, mine: str | None) -> _Turn:
        """Let the core decide; post what is for others, once it may be told."""
        core = self._core
        turn = _Turn()
        if not self._awaits_endpoints():
            for request in self._early.values():
                core.submit(request)
            self._early.clear()
            self._expired.extend(core.expire())
            stored = self._writer is not None
            posted: list[Decision] = []
            for decision in core.poll():
                if stored and isinstance(decision, Granted) and is_paid(decision.lease):
                    (turn.paid if decision.holder == mine else turn.others).append(decision)
                elif decision.holder == mine:
                    turn.free.append(decision)
                else:
                    posted.append(decision)
            self._holders.post(posted)
            if (wake_s := core.next_wake_s()) is not None:
                self._wake_by(wake_s)
            if self._expired:
                self._wake_by(0.0)
        turn.batch = core.recorded()
        if mine is None:
            self._write(turn)
        return turn

    # -- the store, under the lock too

    def _open_store(self, url: str | None, fleet: str) -> None:
        try:
            store = open_store(url, fleet)
        except ConfigError as error:
            # Said by `ping`: an actor that fails to start would only say that it failed.
            log.error("no store, so nothing is scheduled", why=str(error))
            self._broken = error
            return
        self._writer = StoreWriter(store)
        if not store.is_new:
            saved = store.load()
            # A process that does not come back is dropped like any other that is silent.
            for name in self._core.restore(saved):
                self._heard(name)
            log.warning(
                "scheduler restarted", paid_leases_open=sum(each.is_open for each in saved.leases)
            )

    def _write(
        self,
        turn: _Turn,
        holder: Holder | None = None,
        number: int = 0,
        on_disk: asyncio.Future[list[Decision]] | None = None,
    ) -> None:
        """Have a turn written; then tell what it granted."""
        batch = turn.batch
        if batch is None and (turn.paid or turn.others):
            batch = Batch()  # Leases that are told again: what they wait for is being written.
        if self._writer is None or batch is None:
            if holder is not None and not holder.writing:
                holder.written = number
            return
        if holder is not None:
            holder.writing += 1

        def done() -> None:
            with self._lock:
                if holder is not None:
                    holder.writing -= 1
                    holder.written = max(holder.written, number)
                self._holders.post(turn.others)
                if on_disk is None:
                    self._holders.post(turn.paid)
                    return
            # A loop that waits is in another thread.
            on_disk.get_loop().call_soon_threadsafe(on_disk.set_result, turn.paid)

        self._writer.put(batch, done)

    def _awaits_endpoints(self) -> bool:
        """Whether this is a start, or a restart, after which the fleet has told nothing yet.

        Meanwhile requests (those that processes ask again, after a restart) wait: they are not
        refused for lack of an endpoint. Whether Ray restarted us cannot be told for certain here:
        its own answer comes from the GCS, which may learn of it later.
        """
        told = self._told or bool(self._core.registry.endpoints)
        return not told and self._clock.now() < self._refuses_from_s

    def _wake_by(self, at_s: float) -> None:
        if at_s < self._wake_s:
            self._wake_s = at_s
            self._timer.notify()

    # -- the thread that keeps time

    def _keep_time(self) -> None:
        while True:
            with self._lock:
                while (left_s := self._wake_s - self._clock.now()) > 0.0:
                    self._timer.wait(min(left_s, _LONGEST_SLEEP_S))
                self._wake_s = float("inf")
                self._drop_silent()
                self._turn(None)
                expired, self._expired = self._expired, []
                if self._expired:
                    self._wake_by(0.0)
            abort(expired)

    def _drop_silent(self) -> None:
        for name in self._holders.silent(self._clock.now()):
            log.warning("process is silent, its leases end", holder=name)
            self._drop(name)
        if (dead_s := self._holders.next_death_s()) is not None:
            self._wake_by(dead_s)


def abort(expired: list[Expired]) -> None:
    """Ask replicas to abort the calls of leases that ended without a settlement."""
    calls: dict[str, list[str]] = {}
    for each in expired:
        if each.state.spec.kind is EndpointKind.LOCAL:
            calls.setdefault(each.endpoint, []).append(each.call_id)
    for name, call_ids in calls.items():
        try:
            ray.get_actor(name, namespace=RAY_NAMESPACE).abort.remote(call_ids)
        except ValueError:
            log.info(
                "replica is gone, with calls whose leases ended", endpoint=name, calls=len(call_ids)
            )


SchedulerActor = ray.remote(concurrency_groups={"control": 16})(Scheduler)


def start_scheduler(config: FleetConfig, *, holder_timeout_s: float = HOLDER_TIMEOUT_S) -> Any:
    """Start the cluster's scheduler, or find the running one."""
    return start_on_head(
        SchedulerActor,
        SCHEDULER_NAME,
        config,
        holder_timeout_s=holder_timeout_s,
        fleet=uuid.uuid4().hex,
    )
