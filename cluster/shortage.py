"""Pure: requests whose chosen endpoint costs more than a budget has left now."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from agentcloud.cluster.budget import ZERO, BudgetNode, BudgetTree, exceeded
from agentcloud.cluster.contracts import EndpointKind, EndpointSpec, LeaseRequest
from agentcloud.cluster.dispatch import Dispatcher
from agentcloud.cluster.errors import AgentCloudError, NoEndpoint
from agentcloud.cluster.parking import Parking
from agentcloud.cluster.registry import Registry
from agentcloud.cluster.waiting import Waiter


class Shortage:
    """What a call may cost at most, what is in its way, and who waits for money to come back."""

    def __init__(
        self,
        registry: Registry,
        budgets: BudgetTree,
        dispatcher: Dispatcher,
        refuse: Callable[[Waiter, AgentCloudError], None],
    ) -> None:
        self._registry = registry
        self._budgets = budgets
        self._dispatcher = dispatcher
        self._refuse = refuse
        self._parking = Parking()
        self._left_over = False

    def look(self, request: LeaseRequest, spec: EndpointSpec) -> tuple[Decimal, BudgetNode | None]:
        """A call's worst case at an endpoint, USD, and the budget that is in its way, if one is."""
        if spec.kind is EndpointKind.LOCAL:
            return ZERO, None
        path = request.routing.budget
        worst = self._registry.pricer.worst_case_usd(
            spec.model,
            request.input_tokens,
            request.max_output_tokens,
            cache_ttl=request.cache_ttl,
            batch=spec.batch,
        )
        if worst is None:
            capped = (node for node in self._budgets.nodes(path) if node.limit_usd is not None)
            return ZERO, next(capped, None)
        return worst, self._budgets.obstacle(path, worst)

    def hold(self, waiter: Waiter, node: BudgetNode, worst: Decimal) -> None:
        """Find a request another way than through a budget, let it wait, or refuse it."""
        # Five cases: another tier than the asked-for one is too dear (wait for what was asked
        # for), a free endpoint is able (wait for that one alone), the price is unknown under a
        # cap (refuse), calls in flight hold money that may come back (wait for their
        # settlements), or it can never fit (refuse).
        request = waiter.request
        self._dispatcher.remove(waiter)
        if waiter.is_fallback and self._registry.options(
            request, waiter.asked, free_only=waiter.free_only
        ):
            waiter.target = waiter.asked
            self._dispatcher.add(waiter)
            return
        free = self._registry.options(request, waiter.target, free_only=True)
        if free and not waiter.free_only:
            waiter.free_only = True
            self._dispatcher.add(waiter)
        elif not worst:
            self._refuse(
                waiter,
                NoEndpoint(
                    f"the price of {waiter.target!r} is unknown and the budget of {node.scope} is "
                    f"capped; set `prices:` of the model in fleet.yaml"
                ),
            )
        elif node.may_fit_later(worst):
            self.decided(waiter)
            waiter.unparked = False
            self._parking.park(node, waiter, worst)
        else:
            self._refuse(waiter, exceeded(node))

    def came_back(self, *, everything: bool = False) -> None:
        """Money came back: those who waited for it try again, before later ones."""
        if self._parking:
            for waiter in reversed(self._parking.release(everything=everything)):
                waiter.unparked = True
                self._dispatcher.add(waiter, first=True)

    def decided(self, waiter: Waiter) -> None:
        """A request is decided; if money came back for it, it may not have taken it."""
        self._left_over |= waiter.unparked

    def has_more(self) -> bool:
        """Whether money that came back for others was left over; those behind them try now."""
        left_over, self._left_over = self._left_over, False
        if left_over:
            self.came_back()
        return left_over

    def __len__(self) -> int:
        return len(self._parking)

    def __repr__(self) -> str:
        return f"<Shortage {self._parking!r}>"
