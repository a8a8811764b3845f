"""Pure: what the scheduler's core wants on disk, gathered until its shell takes it away.

A paid call is written down before its holder may send it, and again when it ends; budgets are
written as what they have spent. What is reserved is not written: it is the sum of the open leases.
Calls of local endpoints write nothing ahead, and their shell waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from agentcloud.cluster.budget import BudgetTree, Path
from agentcloud.cluster.contracts import EndpointKind, Lease, LeaseRequest, Outcome, Settlement


class LeaseState(StrEnum):
    """Where a paid lease stands; only `granted` holds a reservation."""

    GRANTED = "granted"
    SETTLED = "settled"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PaidLease:
    """A paid lease as it is written before its holder has it.

    Attributes:
        lifetime_s: seconds from the grant after which it expires.
        step: the recorded step that its call is; None: of none.
    """

    lease_id: str
    call_id: str
    attempt: int
    holder: str
    endpoint: str
    budget: Path
    reserved_usd: Decimal
    lifetime_s: float
    step: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """How a paid lease ended; a cost of None stays charged at the reservation."""

    lease_id: str
    state: LeaseState
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """What a budget may spend, has spent, and cannot account for, USD."""

    path: Path
    limit_usd: Decimal | None
    spent_usd: Decimal
    unknown_usd: Decimal


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be written in one transaction; `closed` budgets are forgotten."""

    granted: Sequence[PaidLease] = ()
    ended: Sequence[LeaseEnd] = ()
    budgets: Sequence[BudgetRow] = ()
    closed: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class SavedLease:
    """A paid lease without a known cost, as it was found.

    Attributes:
        left_s: seconds until it expires; negative when that has passed.
        is_open: granted and not ended; False: its cost is unknown.
    """

    row: PaidLease
    left_s: float
    is_open: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """What a former instance of the scheduler left."""

    budgets: list[BudgetRow]
    leases: list[SavedLease]


class Journal:
    """What happened since the last `drain`."""

    def __init__(self) -> None:
        self._granted: list[PaidLease] = []
        self._ended: list[LeaseEnd] = []
        #: Paths of budgets that changed; the tree adds to it.
        self.touched: set[Path] = set()

    def granted(self, request: LeaseRequest, lease: Lease) -> None:
        """A lease was granted; only a paid one is written."""
        if is_paid(lease):
            self._granted.append(
                PaidLease(
                    lease.lease_id,
                    request.call_id,
                    request.attempt,
                    request.holder,
                    lease.endpoint.name,
                    request.routing.budget,
                    lease.reserved_usd,
                    lease.expires_in_s,
                    request.routing.step,
                )
            )

    def settled(self, lease: Lease, settlement: Settlement) -> None:
        """A lease was settled; only a paid one is written."""
        if is_paid(lease):
            self.ended(settlement.lease_id, settlement.outcome, settlement.cost_usd)

    def ended(self, lease_id: str, outcome: Outcome, cost_usd: Decimal | None) -> None:
        """A paid lease ended."""
        if cost_usd is None:
            state = LeaseState.UNKNOWN
        elif outcome is Outcome.FAILED:
            state = LeaseState.FAILED
        else:
            state = LeaseState.SETTLED
        self._ended.append(LeaseEnd(lease_id, state, cost_usd))

    def drain(self, budgets: BudgetTree) -> Batch | None:
        """Everything gathered, budgets as they stand now; None when there is nothing."""
        if not (self._granted or self._ended or self.touched):
            return None
        rows, closed = [], []
        for path in self.touched:
            node = budgets.get(path)
            if node is None:
                closed.append(path)
            else:
                rows.append(BudgetRow(path, node.limit_usd, node.spent_usd, node.unknown_usd))
        batch = Batch(self._granted, self._ended, rows, closed)
        self._granted, self._ended = [], []
        self.touched.clear()
        return batch

    def __repr__(self) -> str:
        return (
            f"<Journal granted={len(self._granted)} ended={len(self._ended)} "
            f"budgets={len(self.touched)}>"
        )


def is_paid(lease: Lease) -> bool:
    """Whether a call under the lease costs money that is gone if nobody remembers it."""
    return lease.endpoint.kind is EndpointKind.HOSTED


def merged(batches: Iterable[Batch]) -> Batch:
    """Several batches as one; of a budget the last word counts."""
    granted: list[PaidLease] = []
    ended: list[LeaseEnd] = []
    budgets: dict[Path, BudgetRow | None] = {}
    for batch in batches:
        granted.extend(batch.granted)
        ended.extend(batch.ended)
        budgets.update((row.path, row) for row in batch.budgets)
        budgets.update((path, None) for path in batch.closed)
    return Batch(
        granted,
        ended,
        [row for row in budgets.values() if row is not None],
        [path for path, row in budgets.items() if row is None],
    )
