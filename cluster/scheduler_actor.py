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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeVar

import ray
import structlog

from agentcloud.cluster.alarm_watch import AlarmWatch, TaskFacts
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import SystemClock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    RAY_NAMESPACE,
    SCHEDULER_NAME,
    BudgetState,
    EndpointKind,
    EndpointSpec,
    LeaseRequest,
    LoadReport,
)
from agentcloud.cluster.decisions import Decision, Granted
from agentcloud.cluster.demand import Demand, Expected
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.journal import Batch, Journal, is_paid
from agentcloud.cluster.leases import Expired
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.metrics import CallMetrics
from agentcloud.cluster.prefix import Change
from agentcloud.cluster.scheduler import (
    SchedulerCore,
)
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
#: Long-lived streams each take one of these.
_MAX_CALLS: Final = 100_000
_LONGEST_SLEEP_S: Final = 60.0
_NOTHING_TOLD: Final[Mapping[str, Sequence[Change | None]]] = {}
#: Ray's own resource of the head's machine.
_HEAD: Final = "node:__internal_head__"

log = structlog.get_logger()


@dataclass(slots=True)
class _Holder:
    """A process that asks: when it last spoke, and where its late decisions go."""

    seen_s: float
    outbox: list[Decision] = field(default_factory=list)
    #: Its last exchange whose settlements are on disk, and how many writes are under way for it.
    written: int = 0
    writing: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    wake: asyncio.Event | None = None


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


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _control(method: _Method) -> _Method:
    """Run a method in the group of its own, which calls and streams cannot fill."""
    decorated: _Method = ray.method(concurrency_group="control")(method)
    return decorated


class Scheduler:
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
        self._refuses_from_s = self._clock.now() + REJOIN_S
        self._told = False
        self._early: dict[str, LeaseRequest] = {}
        self._wake_s = self._refuses_from_s
        self._holders: dict[str, _Holder] = {}
        self._holder_timeout_s = holder_timeout_s
        self._expired: list[Expired] = []
        self._writer: StoreWriter | None = None
        self._broken: ConfigError | None = None
        if fleet:
            self._open_store(config.store, fleet)
        self._metrics = CallMetrics()
        self._metrics.start(self._core, self._lock, self._clock.now)
        self._alarms = AlarmWatch(config.alarms, self._epoch[:6], self._clock.now, time.time)
        self._alarms.start()
        self._timer = threading.Condition(self._lock)
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
            holder = self._holder(exchange.holder)
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
            holder = self._holder(name)
            holder.loop, holder.wake = asyncio.get_running_loop(), wake
        while True:
            with self._lock:
                # Ended: the process left or died, or it has opened another stream.
                if self._holders.get(name) is not holder or holder.wake is not wake:
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

    # -- endpoints, budgets, looking at it: a group of their own, so that they are never stuck

    @_control
    async def ping(self) -> str:
        """This instance's id; another one after a restart, which has no endpoints yet.

        Raises:
            ConfigError: its store cannot be used.
        """
        if self._broken is not None:
            raise self._broken
        return self._epoch

    @_control
    async def configure(self, config: FleetConfig) -> None:
        """Take another fleet.yaml."""
        catalog = load_catalog().with_overrides(config.hosted)
        with self._lock:
            self._core.configure(config, catalog)
            self._turn(None)
        self._alarms.configure(config.alarms)

    @_control
    async def config(self) -> FleetConfig:
        """The fleet.yaml in force."""
        return self._core.config

    @_control
    async def register(self, specs: list[EndpointSpec]) -> None:
        """As `SchedulerCore.register`."""
        with self._lock:
            self._core.register(specs)
            self._turn(None)

    @_control
    async def unregister(self, names: list[str]) -> None:
        """As `SchedulerCore.unregister`."""
        with self._lock:
            self._core.unregister(names)
            self._turn(None)

    @_control
    async def expect(self, expected: list[Expected], specs: list[EndpointSpec]) -> None:
        """As `SchedulerCore.expect`, and `register` before it: nobody is refused in between."""
        with self._lock:
            self._told = True
            self._core.register(specs)
            self._core.expect(expected)
            self._turn(None)

    @_control
    async def demand(self) -> Demand:
        """As `SchedulerCore.demand`."""
        with self._lock:
            return self._core.demand()

    @_control
    async def open_leases(self, name: str) -> int:
        """As `SchedulerCore.open_leases`."""
        with self._lock:
            return self._core.open_leases(name)

    @_control
    async def report_load(
        self,
        loads: Mapping[str, LoadReport],
        prefixes: Mapping[str, Sequence[Change | None]] = _NOTHING_TOLD,
    ) -> None:
        """As `SchedulerCore.report_load`, and `report_prefixes` of each change in turn."""
        with self._lock:
            self._core.report_load(loads)
            for name, changes in prefixes.items():
                for change in changes:
                    self._core.report_prefixes({name: change})

    @_control
    async def mark_down(self, name: str, why: str) -> None:
        """As `SchedulerCore.mark_down`."""
        with self._lock:
            self._core.mark_down(name, why)
            self._turn(None)

    @_control
    async def open_budget(self, path: tuple[str, ...], limit_usd: Decimal | None) -> None:
        """As `SchedulerCore.open_budget`."""
        with self._lock:
            self._core.open_budget(tuple(path), limit_usd)
            self._turn(None)

    @_control
    async def close_budget(self, path: tuple[str, ...]) -> None:
        """As `SchedulerCore.close_budget`."""
        with self._lock:
            self._core.close_budget(tuple(path))
            self._turn(None)

    @_control
    async def budgets(self) -> list[BudgetState]:
        """As `SchedulerCore.budgets`."""
        with self._lock:
            return self._core.budgets()

    @_control
    async def explain(self, call: str) -> dict[str, Any] | None:
        """As `SchedulerCore.explain`."""
        with self._lock:
            return self._core.explain(call)

    @_control
    async def tasks_ended(self, kind: str, facts: list[TaskFacts]) -> None:
        """As `AlarmWatch.tasks_ended`."""
        self._alarms.tasks_ended(kind, facts)

    @_control
    async def alarms(self, baselines: bool = False) -> dict[str, Any]:
        """As `AlarmWatch.report`."""
        return self._alarms.report(baselines=baselines)

    @_control
    async def snapshot(self) -> dict[str, Any]:
        """As `SchedulerCore.snapshot`, with the processes that are heard of."""
        now_s = self._clock.now()
        with self._lock:
            shown = self._core.snapshot()
            shown["holders"] = {
                name: {"silent_s": now_s - holder.seen_s} for name, holder in self._holders.items()
            }
        return shown

    # -- under the lock

    def _holder(self, name: str) -> _Holder:
        now_s = self._clock.now()
        holder = self._holders.get(name)
        if holder is None:
            holder = self._holders[name] = _Holder(now_s)
            self._wake_by(now_s + self._holder_timeout_s)
        holder.seen_s = now_s
        return holder

    def _drop(self, name: str) -> None:
        holder = self._holders.pop(name, None)
        if holder is not None:
            self._signal(holder)
        self._early = {key: each for key, each in self._early.items() if each.holder != name}
        self._expired.extend(self._core.drop_holder(name))

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
            self._post(posted)
            if (wake_s := core.next_wake_s()) is not None:
                self._wake_by(wake_s)
            if self._expired:
                self._wake_by(0.0)
        turn.batch = core.recorded()
        if mine is None:
            self._write(turn)
        return turn

    def _post(self, decisions: list[Decision]) -> None:
        """Put decisions where their processes find them; those of dead ones are dropped."""
        posted: set[str] = set()
        for decision in decisions:
            if (holder := self._holders.get(decision.holder)) is not None:
                holder.outbox.append(decision)
                posted.add(decision.holder)
        for name in posted:
            self._signal(self._holders[name])

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
                self._holder(name)
            log.warning(
                "scheduler restarted", paid_leases_open=sum(each.is_open for each in saved.leases)
            )

    def _write(
        self,
        turn: _Turn,
        holder: _Holder | None = None,
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
                self._post(turn.others)
                if on_disk is None:
                    self._post(turn.paid)
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

    @staticmethod
    def _signal(holder: _Holder) -> None:
        if holder.loop is not None and holder.wake is not None:
            holder.loop.call_soon_threadsafe(holder.wake.set)

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
        limit_s = self._clock.now() - self._holder_timeout_s
        for name, holder in list(self._holders.items()):
            if holder.seen_s <= limit_s:
                log.warning("process is silent, its leases end", holder=name)
                self._drop(name)
            else:
                self._wake_by(holder.seen_s + self._holder_timeout_s)


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
    """Start the cluster's scheduler, detached and restarted by Ray; or find the running one.

    It stays on the head's machine, where its store's file is, also after a restart.
    """
    return SchedulerActor.options(
        name=SCHEDULER_NAME,
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=_MAX_CALLS,
        num_cpus=0,
        resources={_HEAD: 0.001} if _HEAD in ray.cluster_resources() else None,
    ).remote(config, holder_timeout_s=holder_timeout_s, fleet=uuid.uuid4().hex)
