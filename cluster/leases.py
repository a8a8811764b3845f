"""Pure: granted leases from the grant to the settlement or the expiry.

A grant takes a slot, rate-limit tokens and money, or nothing at all. A settlement replaces them by
the truth once; a lease that nobody settles expires, its slot is freed and its money stays charged
as unknown.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from agentcloud.cluster.budget import ZERO, BudgetTree, Reservation
from agentcloud.cluster.contracts import Lease, LeaseRequest, Outcome, Settlement, Why
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.former import Held
from agentcloud.cluster.journal import Journal, is_paid
from agentcloud.cluster.limits import AccountLimits, Hold
from agentcloud.cluster.standing import Totals
from agentcloud.cluster.verdict import bound_limits, judge, learn
from agentcloud.cluster.weighing import Choice, considered

#: Expired leases whose late settlement still turns unknown money into the truth.
_EXPIRED_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Expired:
    """A lease that nobody settled in time: its call should be aborted at its endpoint."""

    lease_id: str
    call_id: str
    state: EndpointState
    holder: str
    charged_usd: Decimal

    @property
    def endpoint(self) -> str:
        """Name of the endpoint it was for."""
        return self.state.spec.name


class Granted:
    """What the scheduler remembers of a lease.

    Attributes:
        spare: in advance, for a call that has not come.
    """

    __slots__ = (
        "ahead",
        "attempt",
        "expires_s",
        "granted_s",
        "hold",
        "holder",
        "input_tokens",
        "kind",
        "kv",
        "lease",
        "max_output_tokens",
        "per_token_s",
        "reservation",
        "running",
        "spare",
        "state",
    )

    def __init__(
        self,
        lease: Lease,
        holder: str,
        attempt: int,
        state: EndpointState,
        hold: Hold | None,
        reservation: Reservation,
        granted_s: float,
        expires_s: float,
        running: int,
        input_tokens: int,
        ahead: tuple[float, float],
        kv: float,
        max_output_tokens: int,
        per_token_s: float | None,
        kind: str,
        spare: bool = False,
    ) -> None:
        self.lease = lease
        self.holder = holder
        self.attempt = attempt
        self.state = state
        self.hold = hold
        self.reservation = reservation
        self.granted_s = granted_s
        self.expires_s = expires_s
        self.running = running
        self.input_tokens = input_tokens
        self.ahead = ahead
        self.kv = kv
        self.max_output_tokens = max_output_tokens
        self.per_token_s = per_token_s
        self.kind = kind
        self.spare = spare


class LeaseBook:
    """All leases in flight."""

    def __init__(
        self,
        budgets: BudgetTree,
        rng: random.Random,
        take_out: Callable[[str, str, float], None],
        journal: Journal | None = None,
    ) -> None:
        self.budgets = budgets
        self._journal = journal
        self._take_out = take_out
        self.totals: dict[str, Totals] = {}
        self.stale_settlements = 0
        self._rng = rng
        self._epoch = f"{rng.getrandbits(32):08x}"
        self._count = 0
        self._open: dict[str, Granted] = {}
        self._by_call: dict[str, Granted] = {}
        self._expiries: list[tuple[float, str]] = []
        self._expired: OrderedDict[str, Granted] = OrderedDict()

    def grant(
        self,
        request: LeaseRequest,
        choice: Choice,
        reserved_usd: Decimal,
        why: Why,
        submitted_s: float,
        lifetime_s: float,
        now_s: float,
        fallback_from: str | None = None,
        hedge_after_s: float | None = None,
        reused_chunks: int = 0,
        warms: bool = False,
    ) -> Lease:
        """Take slot, limits and money for the chosen endpoint.

        Raises:
            BudgetExceeded: a cap is in the way; nothing was taken.
        """
        best = choice.best
        state = best.state
        if state is None:
            raise ValueError("a choice without a free endpoint cannot be granted")
        reservation = self.budgets.reserve(request.routing.budget, reserved_usd)
        cls = state.cls
        hold = _hold(cls.limiter, request, now_s)
        queue = state.queue
        queue.drain(cls.predictor.ttft, now_s)
        ahead = queue.tokens, queue.pairs
        state.circuit.on_grant()
        kv = state.taken(request, best.cached_tokens, now_s)
        cls.place(state, now_s)
        self._count += 1
        estimate = best.estimate
        lease = Lease(
            f"{self._epoch}-{self._count}",
            request.call_id,
            state.spec,
            why,
            reserved_usd,
            estimate.ttft_s if estimate.ttft_known else None,
            estimate.total_s if estimate.known else None,
            now_s - submitted_s,
            lifetime_s,
            fallback_from,
            hedge_after_s,
            considered(choice, now_s),
            reused_chunks,
            warms,
        )
        granted = Granted(
            lease,
            request.holder,
            request.attempt,
            state,
            hold,
            reservation,
            now_s,
            now_s + lifetime_s,
            state.running(now_s),
            request.input_tokens,
            ahead,
            kv,
            request.max_output_tokens,
            estimate.per_token_s if estimate.known else None,
            request.routing.kind,
            request.spare,
        )
        self._put(granted)
        if self._journal is not None:
            self._journal.granted(request, lease)
        return lease

    def bind(self, lease_id: str, request: LeaseRequest) -> Lease | None:
        """A call took a lease that was granted in advance; None: it has ended."""
        granted = self._open.get(lease_id)
        if granted is None or not granted.spare:
            return None
        granted.spare = False
        granted.kind = request.routing.kind
        granted.input_tokens, granted.max_output_tokens = (
            request.input_tokens,
            request.max_output_tokens,
        )
        self._forget_call(granted)
        granted.lease = replace(granted.lease, call_id=request.call_id)
        granted.reservation = self.budgets.reserve(request.routing.budget, ZERO)
        self._by_call[request.call_id] = granted
        return granted.lease

    def adopt(
        self, held: Held, state: EndpointState, reservation: Reservation, now_s: float
    ) -> None:
        """Count a lease that an earlier scheduler granted; its prompt is taken to be read."""
        request, lease, cls = held.request, held.lease, state.cls
        hold = _hold(cls.limiter, request, now_s)
        kv = state.adopted(request)
        cls.place(state, now_s)
        granted_s = now_s - held.age_s
        self._put(
            Granted(
                lease,
                request.holder,
                request.attempt,
                state,
                hold,
                reservation,
                granted_s,
                granted_s + lease.expires_in_s,
                state.running(now_s),
                request.input_tokens,
                (0.0, 0.0),
                kv,
                request.max_output_tokens,
                None,
                request.routing.kind,
            )
        )

    def knows(self, lease_id: str) -> bool:
        """Whether a lease is open, or has expired here."""
        return lease_id in self._open or lease_id in self._expired

    def held_for(self, request: LeaseRequest) -> Lease | None:
        """The open lease of this very attempt, for a request that was told twice."""
        granted = self._by_call.get(request.call_id)
        if granted is None or granted.attempt != request.attempt:
            return None
        return granted.lease

    def settle(self, settlement: Settlement, now_s: float, wall_s: float | None) -> Granted | None:
        """Replace what a lease took by the truth; returns the lease that ended, if one did.

        A second settlement changes nothing, except that the cost of an expired lease or of one
        settled as unknown, told late, replaces its unknown money.
        """
        granted = self._open.pop(settlement.lease_id, None)
        if granted is None:
            self._reconcile(settlement)
            return None
        self._forget_call(granted)
        state, cls = granted.state, granted.state.cls
        state.given_back(granted.kv)
        cost_usd = settlement.cost_usd
        if cost_usd is None and not granted.lease.reserved_usd:
            # Nothing was reserved, and what a local call cost in GPU time may be unpriced.
            self.budgets.settle(granted.reservation, ZERO)
        else:
            self.budgets.settle(granted.reservation, cost_usd)
            if cost_usd is None:
                self._keep(settlement.lease_id, granted)
        if self._journal is not None:
            self._journal.settled(granted.lease, settlement)
        if cls.limiter is not None and granted.hold is not None:
            sent = settlement.outcome in (Outcome.CANCELLED, Outcome.UNKNOWN, Outcome.OK)
            cls.limiter.settle(granted.hold, settlement.usage, sent=sent, now_s=now_s)
            bound_limits(state, settlement, now_s, wall_s)
        if settlement.unusable:
            self._take_out(state.spec.name, settlement.error_kind or "unusable", now_s)
        judge(state, granted.granted_s, settlement, now_s, wall_s)
        if settlement.outcome is Outcome.OK and settlement.usage is not None:
            learn(granted, settlement, settlement.usage)
        if granted.spare:
            # Nobody took it: no call, so none was cancelled.
            cls.place(state, now_s)
            return granted
        totals = self._total(granted)
        totals.add(settlement, now_s, now_s - granted.granted_s)
        if settlement.outcome is Outcome.OK:
            totals.judge(granted.lease.predicted_ttft_s, granted.per_token_s, settlement)
        cls.place(state, now_s)
        return granted

    def expire(self, now_s: float) -> list[Expired]:
        """End the leases whose time has passed."""
        ended = []
        expiries = self._expiries
        while expiries and expiries[0][0] <= now_s:
            _, lease_id = heapq.heappop(expiries)
            granted = self._open.get(lease_id)
            if granted is not None:
                ended.append(self._end(lease_id, granted, now_s))
        if len(expiries) > 2 * len(self._open) + 1024:
            self._expiries = [(each.expires_s, key) for key, each in self._open.items()]
            heapq.heapify(self._expiries)
        return ended

    def drop_holder(self, holder: str, now_s: float) -> list[Expired]:
        """End the leases of a process that died; its money in flight is unknown."""
        mine = [(key, each) for key, each in self._open.items() if each.holder == holder]
        return [self._end(lease_id, granted, now_s) for lease_id, granted in mine]

    def next_expiry_s(self) -> float | None:
        """Clock time of the next expiry (or earlier), None when nothing is in flight."""
        return self._expiries[0][0] if self._expiries and self._open else None

    def count(self, endpoint: str) -> int:
        """Open leases of one endpoint."""
        return sum(granted.lease.endpoint.name == endpoint for granted in self._open.values())

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        return f"<LeaseBook open={len(self._open)} granted={self._count}>"

    def _end(self, lease_id: str, granted: Granted, now_s: float) -> Expired:
        del self._open[lease_id]
        self._forget_call(granted)
        state = granted.state
        state.given_back(granted.kv)
        self.budgets.settle(granted.reservation, None if granted.lease.reserved_usd else ZERO)
        if self._journal is not None and is_paid(granted.lease):
            self._journal.ended(lease_id, Outcome.UNKNOWN, None)
        if state.cls.limiter is not None and granted.hold is not None:
            state.cls.limiter.settle(granted.hold, None, sent=True, now_s=now_s)
        state.circuit.on_nothing(granted.granted_s)
        state.cls.place(state, now_s)
        if not granted.spare:
            self._keep(lease_id, granted)
            self._total(granted).expired += 1
        return Expired(
            lease_id,
            granted.lease.call_id,
            state,
            granted.holder,
            granted.lease.reserved_usd,
        )

    def _put(self, granted: Granted) -> None:
        lease = granted.lease
        self._open[lease.lease_id] = granted
        self._by_call[lease.call_id] = granted
        heapq.heappush(self._expiries, (granted.expires_s, lease.lease_id))

    def _keep(self, lease_id: str, granted: Granted) -> None:
        self._expired[lease_id] = granted
        if len(self._expired) > _EXPIRED_KEPT:
            self._expired.popitem(last=False)

    def _reconcile(self, settlement: Settlement) -> None:
        granted = self._expired.get(settlement.lease_id)
        if granted is None:
            self.stale_settlements += 1
        elif settlement.cost_usd is not None:
            del self._expired[settlement.lease_id]
            self.budgets.settle(granted.reservation, settlement.cost_usd)
            if self._journal is not None:
                self._journal.settled(granted.lease, settlement)
            self._total(granted).add_cost(settlement.cost_usd)

    def _forget_call(self, granted: Granted) -> None:
        call_id = granted.lease.call_id
        if self._by_call.get(call_id) is granted:
            del self._by_call[call_id]

    def _total(self, granted: Granted) -> Totals:
        return self.total(granted.state.spec.name)

    def total(self, name: str) -> Totals:
        """What an endpoint has done."""
        totals = self.totals.get(name)
        if totals is None:
            totals = self.totals[name] = Totals()
        return totals


def _hold(limiter: AccountLimits | None, request: LeaseRequest, now_s: float) -> Hold | None:
    if limiter is None:
        return None
    first = request.prefix[0] if request.prefix else None
    return limiter.hold(request.input_tokens, request.max_output_tokens, now_s, first)
