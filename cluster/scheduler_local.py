"""`SchedulerPort` over a core in this very process, and what every port does with decisions."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from agentcloud.cluster.contracts import Lease, LeaseRequest, Outcome, Settlement, TokenUsage
from agentcloud.cluster.decisions import Decision, Granted
from agentcloud.cluster.scheduler import (
    SchedulerCore,
)


class LocalScheduler:
    """A core in this very process and event loop: no Ray, no batching."""

    def __init__(self, core: SchedulerCore) -> None:
        self.core = core
        self._futures: dict[str, asyncio.Future[Lease]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, request: LeaseRequest) -> Lease:
        """As `SchedulerPort.acquire`."""
        future = asyncio.get_running_loop().create_future()
        self._futures[request.call_id] = future
        self.core.submit(request)
        self._turn()
        try:
            lease: Lease = await future
        except asyncio.CancelledError:
            if not self.core.cancel(request.call_id) and (granted := lease_of(future)):
                self.settle(unused(granted))
            raise
        finally:
            self._futures.pop(request.call_id, None)
        return lease

    def warmed(self, lease_id: str) -> None:
        """As `SchedulerPort.warmed`."""
        self.core.warmed(lease_id)
        self._turn()

    def settle(self, settlement: Settlement) -> None:
        """As `SchedulerPort.settle`; waiting requests are decided before it returns."""
        self.core.settle(settlement)
        self._turn()

    def _turn(self) -> None:
        self.core.expire()
        for decision in self.core.poll():
            if not deliver(self._futures, decision) and isinstance(decision, Granted):
                self.core.settle(unused(decision.lease))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = self.core.next_wake_in_s()
        if wait_s is not None and self._futures:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._turn)

    def __repr__(self) -> str:
        return f"<LocalScheduler {self.core!r}>"


def deliver(futures: dict[str, asyncio.Future[Lease]], decision: Decision) -> bool:
    """Tell the caller that waits; False when nobody does any more."""
    future = futures.pop(decision.call_id, None)
    if future is None or future.done():
        return False
    if isinstance(decision, Granted):
        future.set_result(decision.lease)
    else:
        future.set_exception(decision.error)
    return True


def lease_of(future: asyncio.Future[Lease]) -> Lease | None:
    """The lease that a future holds, if it was granted."""
    if future.done() and not future.cancelled() and future.exception() is None:
        return future.result()
    return None


def unused(lease: Lease) -> Settlement:
    """The settlement of a lease whose call was never sent: it used and cost nothing."""
    return Settlement(lease.lease_id, Outcome.CANCELLED, TokenUsage(), Decimal(0))
