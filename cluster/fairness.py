"""Pure: who of those that wait is next: fairness by weight, priority as a head start, deadlines.

Waiting requests belong to flows, one for each tenant, job and priority. Start-time fair queueing
(Goyal, Vin and Cheng, SIGCOMM 1996), first over tenants and inside a tenant over its jobs: a flow
carries a virtual start time, its tag; the least tag is served, and what that costs, divided by the
flow's weight, is added to it. A flow that was idle begins at the virtual time of those in service,
so that idling saves nothing up. Costs are seconds of a pool's time, so virtual time passes about
as fast as the clock while one flow waits.

A priority is a head start of `HEAD_START_S` of virtual time for each step, and eight times the
weight: what is less urgent is overtaken for a while and then gets its smaller share, so nothing
starves. Inside a flow the earliest deadline is first, then the earliest request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Virtual seconds that one step of priority is worth.
HEAD_START_S: Final = 60.0
#: Share of the weight that is left at each less urgent step.
_STEP: Final = 1.0 / 8.0
_STEPS: Final = 10
_FLOWS_KEPT: Final = 4096

#: Tag of the tenant, tag of the job, deadline, order of arrival.
Key = tuple[float, float, float, int]
LAST: Final[Key] = (float("inf"), float("inf"), float("inf"), 1 << 62)


class Flow:
    """A tenant's or a job's requests of one priority."""

    __slots__ = ("jobs", "now", "parent", "tag", "waiting", "weight")

    def __init__(self, weight: float, parent: Flow | None) -> None:
        self.weight = weight
        self.parent = parent
        self.tag = 0.0
        #: Virtual time of the flows below.
        self.now = 0.0
        self.waiting = 0
        self.jobs: dict[str, Flow] = {}

    def __repr__(self) -> str:
        return f"<Flow tag={self.tag:.3f} weight={self.weight:g} waiting={self.waiting}>"


class Fairness:
    """All flows, and the virtual time."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Begin with no flows.

        Args:
            weights: by budget scope (`tenant:a`, `job:nightly`); 1.0 where unnamed.
        """
        self.weights = weights
        self._now = 0.0
        self._tenants: dict[tuple[str, int], Flow] = {}

    def flow(self, path: tuple[str, ...], priority: int) -> Flow:
        """The flow of requests with this budget path and priority."""
        tenant = job = ""
        for scope in path:
            if scope.startswith("tenant:"):
                tenant = scope
            elif scope.startswith("job:"):
                job = scope
        known = self._tenants.get((tenant, priority))
        if known is None:
            if len(self._tenants) >= _FLOWS_KEPT:
                self._tenants = {key: each for key, each in self._tenants.items() if each.waiting}
            steps = max(-_STEPS, min(_STEPS, priority))
            known = Flow(self.weights.get(tenant, 1.0) * _STEP**steps, None)
            self._tenants[tenant, priority] = known
            # A flow's tag holds its head start from the beginning.
            known.tag = self._now + steps * HEAD_START_S
        flow = known.jobs.get(job)
        if flow is None:
            if len(known.jobs) >= _FLOWS_KEPT:
                known.jobs = {key: each for key, each in known.jobs.items() if each.waiting}
            flow = known.jobs[job] = Flow(self.weights.get(job, 1.0), known)
            flow.tag = known.now
        return flow

    def wakes(self, flow: Flow, priority: int) -> None:
        """A flow has somebody waiting again: it gets nothing for the time in which it was idle."""
        tenant = flow.parent
        assert tenant is not None
        if not tenant.waiting:
            steps = max(-_STEPS, min(_STEPS, priority))
            tenant.tag = max(tenant.tag, self._now + steps * HEAD_START_S)
        if not flow.waiting:
            flow.tag = max(flow.tag, tenant.now)

    def served(self, flow: Flow, priority: int, cost_s: float) -> None:
        """A request of a flow was granted while others waited.

        Args:
            flow: the flow.
            priority: its priority.
            cost_s: seconds of the pool's time that the call takes.
        """
        tenant = flow.parent
        assert tenant is not None
        steps = max(-_STEPS, min(_STEPS, priority))
        self._now = max(self._now, tenant.tag - steps * HEAD_START_S)
        tenant.now = max(tenant.now, flow.tag)
        tenant.tag += cost_s / tenant.weight
        flow.tag += cost_s / flow.weight

    def __repr__(self) -> str:
        return f"<Fairness now={self._now:.3f} tenants={len(self._tenants)}>"
