"""The scheduler as a process sees it: `SchedulerPort` over the actor.

`SchedulerClient` batches: what is asked and settled while a round trip is under way goes into the
next one, so an idle process pays one round trip per call and a busy one a fraction of it. Grants
that must wait come through one stream per process, without another request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import ray
import structlog

from agentcloud.cluster.contracts import (
    RAY_NAMESPACE,
    SCHEDULER_NAME,
    Lease,
    LeaseRequest,
    Settlement,
)
from agentcloud.cluster.decisions import Decision, Granted
from agentcloud.cluster.errors import ConnectionFailed
from agentcloud.cluster.former import Held
from agentcloud.cluster.journal import is_paid
from agentcloud.cluster.scheduler_local import deliver, lease_of, unused
from agentcloud.cluster.scheduler_wire import Exchange, Reply, packed, unpacked
from agentcloud.cluster.spares import KEEP_S, Bound, Spares

#: Settlements alone wait so long for an acquire to travel with.
SETTLE_LINGER_S: Final = 0.003
#: While a round trip is under way another starts only so long after it: a busy process then asks
#: for many leases at once, and an actor call costs more CPU than all that travels in it.
PACE_S: Final = 0.004
#: A process with so many leases keeps that pace also between round trips, one with more a slower
#: one, up to the longest: with hundreds of calls under way each takes far longer than that.
PACED_LEASES: Final = 64
LONGEST_PACE_S: Final = 0.016
#: Round trips under way at once, and items in each.
MAX_TRIPS: Final = 4
MAX_BATCH: Final = 512
HEARTBEAT_S: Final = 2.0
RECONNECT_S: Final = 15.0
_REOPEN_S: Final = 0.05

log = structlog.get_logger()


def find_scheduler() -> Any:
    """The scheduler's actor, by its name.

    Raises:
        ValueError: there is none.
    """
    return ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)


class SchedulerClient:
    """The actor as `SchedulerPort`; one per process and event loop, made inside the loop.

    When the actor dies it is looked up again for `RECONNECT_S`; what waited is asked again, what
    was settled meanwhile is told then. After that, waiting calls raise `ConnectionFailed`. A new
    instance is told the leases that are still held here, and every settlement of a paid call that
    the one before has not said to be on disk.
    """

    def __init__(
        self,
        actor: Any,
        *,
        find: Callable[[], Any] = find_scheduler,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._actor = actor
        self._find = find
        self._reconnect_s = reconnect_s
        self._futures: dict[str, asyncio.Future[Lease]] = {}
        self._requests: dict[str, LeaseRequest] = {}
        self._to_ask: deque[LeaseRequest] = deque()
        self._to_settle: deque[Settlement] = deque()
        self._to_cancel: deque[str] = deque()
        self._warmed: deque[str] = deque()
        self._spares = Spares(uuid.uuid4().hex[:12])
        self._bound: deque[Bound] = deque()
        self._trips = 0
        self._held: dict[str, tuple[LeaseRequest, Lease, float]] = {}
        self._number = 0
        self._epoch: str | None = None
        self._tell_held = False
        #: Paid leases whose settlement is not on disk, and those settlements that were told.
        self._paid: set[str] = set()
        self._unwritten: deque[tuple[int, Settlement]] = deque()
        self._sent_s = 0.0
        self._linger: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._recovering: asyncio.Task[None] | None = None
        self._closed = False

    async def acquire(self, request: LeaseRequest) -> Lease:
        """As `SchedulerPort.acquire`.

        Raises:
            ConnectionFailed: the scheduler is gone and did not come back.
        """
        self._start()
        loop = asyncio.get_running_loop()
        request = replace(request, holder=self.holder)
        now_s = loop.time()
        spare = self._spares.take(request, now_s) if self._recovering is None else None
        if spare is not None:
            self._held[spare.lease_id] = request, spare, now_s
            self._bound.append(Bound(spare.lease_id, request))
            self._to_ask.extend(self._spares.wanted(request, now_s))
            self._linger_then_send()
            return spare
        future: asyncio.Future[Lease] = loop.create_future()
        self._futures[request.call_id] = future
        self._requests[request.call_id] = request
        self._to_ask.append(request)
        self._to_ask.extend(self._spares.wanted(request, now_s))
        self._send()
        try:
            return await future
        except asyncio.CancelledError:
            if granted := lease_of(future):
                self._held.pop(granted.lease_id, None)
                self._give_back(granted)
            else:
                self._to_cancel.append(request.call_id)
                self._linger_then_send()
            raise
        finally:
            self._futures.pop(request.call_id, None)
            self._requests.pop(request.call_id, None)

    def warmed(self, lease_id: str) -> None:
        """As `SchedulerPort.warmed`; one that is lost only makes others wait out their time."""
        self._start()
        self._warmed.append(lease_id)
        self._linger_then_send()

    def settle(self, settlement: Settlement) -> None:
        """As `SchedulerPort.settle`."""
        self._start()
        self._held.pop(settlement.lease_id, None)
        self._to_settle.append(settlement)
        self._linger_then_send()

    async def flush(self) -> None:
        """Wait until everything settled so far has been told."""
        while self._recovering is None and (self._to_settle or self._to_cancel or self._trips):
            self._send()
            await asyncio.sleep(SETTLE_LINGER_S)

    async def close(self) -> None:
        """Tell what is settled, and leave: leases still open end at the scheduler."""
        if self._closed:
            return
        for lease in self._spares.clear():
            self._give_back(lease)
        if self._recovering is None:
            await self.flush()
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._started:
            try:
                await self._actor.leave.remote(self.holder)
            except ray.exceptions.RayError as error:
                log.debug("the scheduler was gone at close", why=str(error))

    def __repr__(self) -> str:
        return (
            f"<SchedulerClient {self.holder} waiting={len(self._futures)} "
            f"to_settle={len(self._to_settle)} trips={self._trips}>"
        )

    # -- one round trip

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._spawn(self._beat())
            self._spawn(self._listen())

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _linger_then_send(self) -> None:
        if self._linger is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(SETTLE_LINGER_S, self._send)

    def _send(self, *, beat: bool = False) -> None:
        """Start a round trip with all that is there, unless enough are under way."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._recovering is not None or self._closed or self._trips >= MAX_TRIPS:
            return
        told = self._to_settle or self._to_cancel or self._warmed or self._bound
        if not (beat or self._to_ask or told):
            return
        loop = asyncio.get_running_loop()
        early_s = self._sent_s + self._pace_s() - loop.time()
        if early_s > 0:
            # The end of the trip under way may send sooner.
            self._linger = loop.call_later(early_s, self._send)
            return
        self._sent_s = loop.time()
        self._number += 1
        exchange = Exchange(
            self.holder,
            self._number,
            _take(self._to_ask),
            self._settling(),
            _take(self._to_cancel),
            _take(self._warmed),
            self._still_held(),
            _take(self._bound),
        )
        self._trips += 1
        self._spawn(self._trip(exchange))

    def _pace_s(self) -> float:
        by_load_s = min(PACE_S * len(self._held) / PACED_LEASES, LONGEST_PACE_S)
        return max(by_load_s, PACE_S if self._trips else 0.0)

    def _settling(self) -> list[Settlement]:
        """Settlements to tell; those of paid calls are kept until they are on disk."""
        settlements: list[Settlement] = _take(self._to_settle)
        for settlement in settlements:
            if settlement.lease_id in self._paid:
                self._unwritten.append((self._number, settlement))
        return settlements

    def _still_held(self) -> list[Held]:
        """What a new instance must be told; nothing while it is the one that granted them."""
        if not self._tell_held:
            return []
        self._tell_held = False
        now_s = asyncio.get_running_loop().time()
        return [
            Held(request, lease, now_s - since_s) for request, lease, since_s in self._held.values()
        ]

    def _heard(self, epoch: str) -> bool:
        """An instance answered: whether it is another one than before."""
        before, self._epoch = self._epoch, epoch
        if before is None or before == epoch:
            return False
        log.warning("the scheduler was restarted", held=len(self._held))
        self._tell_held = True
        # The new instance knows nothing of spare leases; those in use are told as held.
        self._spares.clear()
        self._bound.clear()
        self._to_settle.extendleft(settlement for _, settlement in reversed(self._unwritten))
        self._unwritten.clear()
        return True

    async def _trip(self, exchange: Exchange) -> None:
        try:
            reply = unpacked(await self._actor.exchange.remote(packed(exchange)), Reply)
        except ray.exceptions.RayTaskError as error:
            # A bug at the scheduler: telling it the same again would only repeat it.
            log.error("the scheduler failed on a batch", why=str(error))
            for request in exchange.requests:
                future = self._futures.get(request.call_id)
                if future is not None and not future.done():
                    future.set_exception(error)
        except ray.exceptions.RayError as error:
            # Nothing of it is known to have arrived: settlements and cancellations are told
            # again (twice changes nothing), requests are asked again by the recovery.
            self._unwritten = deque(each for each in self._unwritten if each[0] != exchange.number)
            self._to_settle.extendleft(reversed(exchange.settlements))
            self._to_cancel.extendleft(reversed(exchange.cancels))
            self._tell_held = self._tell_held or bool(exchange.held)
            self._recover(error)
        else:
            self._take_in(reply.decisions)
            if self._heard(reply.epoch):
                self._ask_again()
            while self._unwritten and self._unwritten[0][0] <= reply.written:
                self._paid.discard(self._unwritten.popleft()[1].lease_id)
        finally:
            self._trips -= 1
        self._send()

    def _take_in(self, decisions: list[Decision]) -> None:
        now_s = asyncio.get_running_loop().time()
        for decision in decisions:
            lease = decision.lease if isinstance(decision, Granted) else None
            if self._spares.decided(decision.call_id, lease, now_s):
                self._give_back_stale()
                continue
            # Its caller may not have woken yet when everything undecided is asked again.
            request = self._requests.pop(decision.call_id, None)
            delivered = deliver(self._futures, decision)
            if lease is None:
                continue
            # Who asks twice is told twice: a lease that is known here is in use, or was settled.
            known = lease.lease_id in self._held or lease.lease_id in self._paid
            if is_paid(lease):
                self._paid.add(lease.lease_id)
            if delivered and request is not None:
                self._held[lease.lease_id] = request, lease, now_s
            elif not (delivered or known):
                self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        """A grant for a caller that has left: it was never sent, so it cost nothing."""
        self._to_settle.append(unused(lease))
        self._linger_then_send()

    def _give_back_stale(self) -> None:
        """Give back spare leases that nobody used, and look again while there are any."""
        loop = asyncio.get_running_loop()
        for lease in self._spares.stale(loop.time()):
            self._give_back(lease)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if len(self._spares) and not self._closed:
            self._sweep = loop.call_later(KEEP_S / 4, self._give_back_stale)

    # -- staying connected

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._send(beat=True)

    async def _listen(self) -> None:
        """Take in decisions on requests that had to wait, for as long as the client lives."""
        while True:
            try:
                stream = self._actor.grants.options(num_returns="streaming").remote(self.holder)
                async for item in stream:
                    self._take_in(await item)
            except ray.exceptions.RayError as error:
                self._recover(error)
            if self._recovering is not None:
                await asyncio.wait([self._recovering])
            else:
                await asyncio.sleep(_REOPEN_S)
            self._ask_again()

    def _recover(self, error: Exception) -> None:
        if self._recovering is None and not self._closed:
            log.warning("lost the scheduler, looking for it", why=type(error).__name__)
            self._recovering = self._spawn(self._reconnect())

    async def _reconnect(self) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._reconnect_s
        while True:
            try:
                actor = await asyncio.to_thread(self._find)
                epoch = await asyncio.wait_for(actor.ping.remote(), max(0.5, end_s - loop.time()))
            except (ValueError, ray.exceptions.RayError, TimeoutError) as error:
                if loop.time() >= end_s:
                    self._fail_all(error)
                    end_s = loop.time() + self._reconnect_s
                await asyncio.sleep(0.2)
            else:
                self._actor = actor
                self._recovering = None
                self._heard(epoch)
                self._ask_again()
                return

    def _ask_again(self) -> None:
        """Ask for everything undecided again: asking twice is asking once."""
        self._to_ask = deque(self._requests.values())
        self._send()

    def _fail_all(self, error: Exception) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(
                    ConnectionFailed(
                        f"the scheduler is gone ({type(error).__name__}) and did not come back "
                        f"within {self._reconnect_s:g} s; look at it with `agentcloud doctor`"
                    )
                )


def _take(queue: deque[Any]) -> list[Any]:
    if len(queue) <= MAX_BATCH:
        items = list(queue)
        queue.clear()
        return items
    return [queue.popleft() for _ in range(MAX_BATCH)]
