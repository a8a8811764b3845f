"""A tree of budgets: reserve at every level or at none, settle to the truth, keep the unknown.

Pure: no clock, no I/O. The scheduler's lock is the only thing that makes it safe to share.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from agentcloud.cluster.contracts import BudgetState
from agentcloud.cluster.errors import BudgetExceeded

ZERO = Decimal(0)
ROOT_SCOPE = "fleet"

Path = tuple[str, ...]


class BudgetNode:
    """One budget: what its scope may spend, has spent, holds, and cannot account for, USD.

    Invariant: while every settled cost is at most its reservation, `used_usd` never passes
    `limit_usd`.
    """

    __slots__ = ("limit_usd", "path", "reserved_usd", "spent_usd", "unknown_usd")

    def __init__(self, path: Path, limit_usd: Decimal | None) -> None:
        self.path = path
        self.limit_usd = limit_usd
        self.spent_usd = ZERO
        self.reserved_usd = ZERO
        self.unknown_usd = ZERO

    @property
    def scope(self) -> str:
        """The innermost name of its path; the root's is `fleet`."""
        return self.path[-1] if self.path else ROOT_SCOPE

    @property
    def used_usd(self) -> Decimal:
        """Everything charged against the cap."""
        return self.spent_usd + self.reserved_usd + self.unknown_usd

    def fits(self, amount_usd: Decimal) -> bool:
        """Whether `amount_usd` more stays within the cap now."""
        return self.limit_usd is None or self.used_usd + amount_usd <= self.limit_usd

    def may_fit_later(self, amount_usd: Decimal) -> bool:
        """Whether it could fit once the reservations in flight settle below their worst case."""
        return (
            self.limit_usd is None
            or self.spent_usd + self.unknown_usd + amount_usd <= self.limit_usd
        )

    def state(self) -> BudgetState:
        """A frozen copy to show."""
        return BudgetState(
            "/".join(self.path) if self.path else ROOT_SCOPE,
            self.limit_usd,
            self.spent_usd,
            self.reserved_usd,
            self.unknown_usd,
        )

    def __repr__(self) -> str:
        return (
            f"<BudgetNode {self.scope} limit={self.limit_usd} spent={self.spent_usd} "
            f"reserved={self.reserved_usd} unknown={self.unknown_usd}>"
        )


@dataclass(slots=True)
class Reservation:
    """Money held at every open budget of a path until it is settled, once."""

    amount_usd: Decimal
    nodes: tuple[BudgetNode, ...]
    settled: bool = False
    unknown: bool = False


class BudgetTree:
    """Budgets by path; the fleet's is always above every other.

    A scope of a path that nobody opened has no cap and keeps no record, so that millions of
    tasks without a budget of their own cost nothing.
    """

    def __init__(
        self, fleet_limit_usd: Decimal | None = None, touched: set[Path] | None = None
    ) -> None:
        """Nothing is spent.

        Args:
            fleet_limit_usd: cap of the root; None: none.
            touched: where the paths of budgets that change are noted, reservations aside.
        """
        self.root = BudgetNode((), fleet_limit_usd)
        self._nodes: dict[Path, BudgetNode] = {(): self.root}
        self._touched = touched

    def get(self, path: Path) -> BudgetNode | None:
        """An open budget; None where there is none."""
        return self._nodes.get(path)

    def open(self, path: Path, limit_usd: Decimal | None) -> None:
        """Create a budget, or change the cap of an open one; what it has spent stays."""
        node = self._nodes.get(path)
        if node is None:
            self._nodes[path] = BudgetNode(path, limit_usd)
        else:
            node.limit_usd = limit_usd
        if self._touched is not None:
            self._touched.add(path)

    def close(self, path: Path) -> None:
        """Forget a budget and all below it; what they spent stays charged above.

        Reservations in flight still settle correctly at the levels that remain.
        """
        if not path:
            return
        depth = len(path)
        for known in [known for known in self._nodes if known[:depth] == path]:
            del self._nodes[known]
            if self._touched is not None:
                self._touched.add(known)

    def nodes(self, path: Path) -> tuple[BudgetNode, ...]:
        """The open budgets along a path, the fleet's first."""
        if not path or len(self._nodes) == 1:
            return (self.root,)
        get = self._nodes.get
        found = [self.root]
        for depth in range(1, len(path)):
            node = get(path[:depth])
            if node is not None:
                found.append(node)
        if (node := get(path)) is not None:
            found.append(node)
        return tuple(found)

    def obstacle(self, path: Path, amount_usd: Decimal) -> BudgetNode | None:
        """The budget that a reservation would pass, or None; one that never fits comes first.

        A reservation of zero passes every budget: free calls are never held up by money.
        """
        if not amount_usd:
            return None
        first = None
        for node in self.nodes(path):
            if not node.fits(amount_usd):
                if not node.may_fit_later(amount_usd):
                    return node
                first = first or node
        return first

    def reserve(self, path: Path, amount_usd: Decimal) -> Reservation:
        """Hold `amount_usd` at every level of the path, or at none.

        Raises:
            BudgetExceeded: naming the scope whose cap it would pass.
        """
        if amount_usd < 0:
            raise ValueError(f"a reservation is not negative: {amount_usd}")
        nodes = self.nodes(path)
        if amount_usd:
            for node in nodes:
                if not node.fits(amount_usd):
                    raise exceeded(node)
            for node in nodes:
                node.reserved_usd += amount_usd
        return Reservation(amount_usd, nodes)

    def settle(self, reservation: Reservation, cost_usd: Decimal | None) -> None:
        """Replace a reservation by the truth; None keeps all of it charged as unknown.

        A reservation settled as unknown may be settled again by a cost that became known later;
        any other second settlement changes nothing.
        """
        amount = reservation.amount_usd
        if reservation.settled:
            if reservation.unknown and cost_usd is not None:
                reservation.unknown = False
                for node in reservation.nodes:
                    node.unknown_usd -= amount
                    node.spent_usd += cost_usd
                self._touch(reservation)
            return
        reservation.settled = True
        reservation.unknown = cost_usd is None
        if not amount and not cost_usd:
            return
        for node in reservation.nodes:
            node.reserved_usd -= amount
            if cost_usd is None:
                node.unknown_usd += amount
            else:
                node.spent_usd += cost_usd
        self._touch(reservation)

    def restore(
        self, path: Path, limit_usd: Decimal | None, spent_usd: Decimal, unknown_usd: Decimal
    ) -> None:
        """Take a budget as an earlier tree left it."""
        node = self._nodes.get(path)
        if node is None:
            node = self._nodes[path] = BudgetNode(path, limit_usd)
        node.limit_usd, node.spent_usd, node.unknown_usd = limit_usd, spent_usd, unknown_usd

    def restore_reservation(
        self, path: Path, amount_usd: Decimal, *, unknown: bool = False
    ) -> Reservation:
        """Hold again what an earlier tree held, whatever the caps say now.

        Args:
            path: where it was reserved.
            amount_usd: how much.
            unknown: it was settled as unknown, and is part of what `restore` was told.
        """
        nodes = self.nodes(path)
        if unknown:
            # A budget that was closed and opened again since then knows nothing of it.
            nodes = tuple(node for node in nodes if node.unknown_usd >= amount_usd)
        else:
            for node in nodes:
                node.reserved_usd += amount_usd
        return Reservation(amount_usd, nodes, settled=unknown, unknown=unknown)

    def _touch(self, reservation: Reservation) -> None:
        if self._touched is not None:
            self._touched.update(node.path for node in reservation.nodes)

    def states(self) -> list[BudgetState]:
        """All open budgets, the fleet's first."""
        return [self._nodes[path].state() for path in sorted(self._nodes)]

    def __repr__(self) -> str:
        return f"<BudgetTree {len(self._nodes)} open, {self.root!r}>"


def exceeded(node: BudgetNode) -> BudgetExceeded:
    """The error of a budget that is in the way."""
    assert node.limit_usd is not None
    return BudgetExceeded(node.scope, used_usd=node.used_usd, limit_usd=node.limit_usd)
