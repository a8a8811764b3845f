"""Pure: requests that wait for money in flight to come back, by the budget that is in the way."""

from __future__ import annotations

from collections import deque
from decimal import Decimal

from agentcloud.cluster.budget import ZERO, BudgetNode
from agentcloud.cluster.waiting import Waiter


class Parking:
    """First come, first served at each budget; looking for money to spend looks at budgets only."""

    def __init__(self) -> None:
        self._lots: dict[int, tuple[BudgetNode, deque[tuple[Waiter, Decimal]]]] = {}

    def park(self, node: BudgetNode, waiter: Waiter, amount_usd: Decimal) -> None:
        """Let a request wait until `amount_usd` fits into a budget, or never can."""
        lot = self._lots.setdefault(id(node), (node, deque()))
        lot[1].append((waiter, amount_usd))

    def release(self, *, everything: bool = False) -> list[Waiter]:
        """Requests to be tried again, in the order they came: as many as the money is for."""
        found: list[Waiter] = []
        for key, (node, lot) in list(self._lots.items()):
            planned = ZERO
            while lot:
                waiter, amount = lot[0]
                hopeless = not node.may_fit_later(amount)
                if not (everything or waiter.decided or hopeless or node.fits(planned + amount)):
                    break
                lot.popleft()
                if not waiter.decided:
                    planned += amount
                    found.append(waiter)
            if not lot:
                del self._lots[key]
        found.sort(key=lambda waiter: waiter.seq)
        return found

    def __bool__(self) -> bool:
        return bool(self._lots)

    def __len__(self) -> int:
        return sum(not waiter.decided for _, lot in self._lots.values() for waiter, _ in lot)

    def __repr__(self) -> str:
        return f"<Parking waiting={len(self)} budgets={len(self._lots)}>"
