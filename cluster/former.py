"""Pure: leases of an earlier scheduler, from its end to their own.

Ray restarts the scheduler while calls go on. Paid leases come back from the store: their money is
held from the first moment. Which leases are really still in use only their holders know; they tell
it with their first exchange, and from then on such a lease is like any other. Three ends for one
that nobody tells of: it is settled (its money becomes the truth), its holder asks for its call
again or cancels it (the grant never arrived: it cost nothing), or its time passes (unknown).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from agentcloud.cluster.budget import ZERO, BudgetTree, Reservation
from agentcloud.cluster.contracts import Lease, LeaseRequest, Outcome, Settlement
from agentcloud.cluster.journal import Journal, PaidLease, Saved, is_paid
from agentcloud.cluster.registry import Registry
from agentcloud.cluster.verdict import bound_limits

if TYPE_CHECKING:
    from agentcloud.cluster.leases import LeaseBook


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that its holder has and has not settled.

    Attributes:
        age_s: seconds since it was granted.
    """

    request: LeaseRequest
    lease: Lease
    age_s: float


@dataclass(slots=True)
class Former:
    """A paid lease of an earlier scheduler."""

    row: PaidLease
    reservation: Reservation
    expires_s: float


class FormerLeases:
    """Leases of an earlier scheduler that nobody has told of yet."""

    def __init__(
        self, budgets: BudgetTree, journal: Journal | None, registry: Registry, leases: LeaseBook
    ) -> None:
        self._registry = registry
        self._leases = leases
        self._budgets = budgets
        self._journal = journal
        self._paid: dict[str, Former] = {}
        self._unknown: dict[str, Former] = {}
        self._calls: dict[str, str] = {}
        self._homeless: dict[str, list[Held]] = {}

    def __bool__(self) -> bool:
        return bool(self._paid or self._unknown or self._homeless)

    def __len__(self) -> int:
        return len(self._paid)

    def restore(self, saved: Saved, now_s: float) -> set[str]:
        """Take what was found in the store: money spent, and paid leases of no known cost.

        Returns:
            The processes whose paid leases came back.
        """
        for row in saved.budgets:
            self._budgets.restore(row.path, row.limit_usd, row.spent_usd, row.unknown_usd)
        for each in saved.leases:
            self._restore(each.row, now_s + each.left_s, is_open=each.is_open)
        # What it has sent is not known: nothing more is, until refilled or told by a response.
        self._registry.limits_start_empty = True
        return {former.row.holder for former in self._paid.values()}

    def _restore(self, row: PaidLease, expires_s: float, *, is_open: bool) -> None:
        reservation = self._budgets.restore_reservation(
            row.budget, row.reserved_usd, unknown=not is_open
        )
        former = Former(row, reservation, expires_s)
        if is_open:
            self._paid[row.lease_id] = former
            self._calls[row.call_id] = row.lease_id
        else:
            self._unknown[row.lease_id] = former

    def settle(self, settlement: Settlement, now_s: float, wall_s: float | None) -> bool:
        """Replace a lease's money by the truth; False: there is no such lease here."""
        lease_id, cost_usd = settlement.lease_id, settlement.cost_usd
        for each in self._homeless.values():
            each[:] = [held for held in each if held.lease.lease_id != lease_id]
        former = self._paid.get(lease_id)
        if former is not None:
            self._forget(former)
            if cost_usd is None:
                self._unknown[lease_id] = former
        elif cost_usd is not None:
            former = self._unknown.pop(lease_id, None)
        if former is None:
            return False
        self._end(former, settlement.outcome, cost_usd)
        self._leases.total(former.row.endpoint).add(settlement, now_s, 0.0)
        state = self._registry.endpoints.get(former.row.endpoint)
        if state is not None:
            bound_limits(state, settlement, now_s, wall_s)
        return True

    def never_sent(self, call_id: str) -> None:
        """The grant of a call has not reached its holder: it was not used and costs nothing."""
        lease_id = self._calls.get(call_id)
        if lease_id is not None:
            former = self._paid[lease_id]
            self._forget(former)
            self._end(former, Outcome.CANCELLED, ZERO)

    def expire(self, now_s: float) -> int:
        """Charge leases whose time has passed as unknown; how many."""
        return self._give_up([each for each in self._paid.values() if each.expires_s <= now_s])

    def drop_holder(self, holder: str) -> int:
        """A process is gone: its leases are of unknown cost; how many."""
        for held in self._homeless.values():
            held[:] = [each for each in held if each.request.holder != holder]
        return self._give_up([each for each in self._paid.values() if each.row.holder == holder])

    def next_expiry_s(self) -> float | None:
        """Clock time of the next expiry."""
        return min((each.expires_s for each in self._paid.values()), default=None)

    def adopt(self, held: Iterable[Held], now_s: float) -> None:
        """Count leases that their holders still have as leases of this scheduler."""
        for each in held:
            name = each.lease.endpoint.name
            if self._leases.knows(each.lease.lease_id):
                continue
            if name in self._registry.endpoints:
                self._adopt(each, now_s)
            else:
                # Its endpoint is not registered yet: it is counted there once it is.
                self._homeless.setdefault(name, []).append(each)

    def registered(self, name: str, now_s: float) -> None:
        """An endpoint is there: leases that were told of before are counted."""
        for held in self._homeless.pop(name, ()):
            self._adopt(held, now_s)

    def _adopt(self, held: Held, now_s: float) -> None:
        former = self._paid.get(held.lease.lease_id)
        if former is not None:
            self._forget(former)
            reservation = former.reservation
        elif is_paid(held.lease):
            return  # It was in the store, until it ended.
        else:
            reservation = self._budgets.restore_reservation(held.request.routing.budget, ZERO)
        state = self._registry.endpoints[held.lease.endpoint.name]
        self._leases.adopt(held, state, reservation, now_s)

    def __repr__(self) -> str:
        homeless = sum(map(len, self._homeless.values()))
        return f"<FormerLeases open={len(self._paid)} unknown={len(self._unknown)} {homeless=}>"

    def _give_up(self, formers: list[Former]) -> int:
        for former in formers:
            self._forget(former)
            self._unknown[former.row.lease_id] = former
            self._end(former, Outcome.UNKNOWN, None)
        return len(formers)

    def _forget(self, former: Former) -> None:
        del self._paid[former.row.lease_id]
        self._calls.pop(former.row.call_id, None)

    def _end(self, former: Former, outcome: Outcome, cost_usd: Decimal | None) -> None:
        self._budgets.settle(former.reservation, cost_usd)
        if self._journal is not None:
            self._journal.ended(former.row.lease_id, outcome, cost_usd)
