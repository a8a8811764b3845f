"""Pure: the groups that wait for one class of endpoints, in the order in which they are served.

The order is fairness.py's: tenants by tag, a tenant's jobs by tag, a job's groups by their first
request. One heap for each of the three: serving a request moves its tenant, its job and its group
back, so three entries are mended, however many groups wait.

What is known of each only grows (tags, the place of a group's first request), so an entry that is
outdated stands too far in front and is mended when it comes to the front. Whatever moves a group
forward pushes it again.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from agentcloud.cluster.fairness import Flow

if TYPE_CHECKING:
    from agentcloud.cluster.pool import EndpointClass
    from agentcloud.cluster.waiting import Group


class _JobLine:
    """The waiting groups of one job."""

    __slots__ = ("flow", "groups")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.groups: list[tuple[float, int, int, Group]] = []

    def front(self, cls: EndpointClass) -> Group | None:
        groups = self.groups
        while groups:
            _, seq, _, group = groups[0]
            if cls not in group.joined:
                heapq.heappop(groups)
            elif not group.live:
                group.joined.discard(cls)
                heapq.heappop(groups)
            elif (first := group.first())[1] != seq:
                heapq.heapreplace(groups, (*first, id(group), group))
            else:
                return group
        return None


class _TenantLine:
    """The waiting jobs of one tenant."""

    __slots__ = ("flow", "jobs", "lines")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.jobs: list[tuple[float, int, _JobLine]] = []
        self.lines: dict[Flow, _JobLine] = {}

    def front(self, cls: EndpointClass) -> Group | None:
        jobs = self.jobs
        while jobs:
            tag, _, line = jobs[0]
            if line.flow.tag != tag:
                heapq.heapreplace(jobs, (line.flow.tag, id(line), line))
                continue
            group = line.front(cls)
            if group is not None:
                return group
            heapq.heappop(jobs)
            del self.lines[line.flow]
        return None


_NOBODY: Final = Flow(1.0, None)


class Line:
    """Who waits for one class."""

    __slots__ = ("_lines", "_tenants")

    def __init__(self) -> None:
        self._tenants: list[tuple[float, int, _TenantLine]] = []
        self._lines: dict[Flow, _TenantLine] = {}

    def push(self, group: Group) -> None:
        """Put a group where its first request belongs; again whenever it came forward."""
        job = group.flow
        tenant = job.parent or _NOBODY
        above = self._lines.get(tenant)
        if above is None:
            above = self._lines[tenant] = _TenantLine(tenant)
            heapq.heappush(self._tenants, (tenant.tag, id(above), above))
        line = above.lines.get(job)
        if line is None:
            line = above.lines[job] = _JobLine(job)
            heapq.heappush(above.jobs, (job.tag, id(line), line))
        heapq.heappush(line.groups, (*group.first(), id(group), group))

    def front(self, cls: EndpointClass) -> Group | None:
        """The group whose first request is next at the class."""
        tenants = self._tenants
        while tenants:
            tag, _, line = tenants[0]
            if line.flow.tag != tag:
                heapq.heapreplace(tenants, (line.flow.tag, id(line), line))
                continue
            group = line.front(cls)
            if group is not None:
                return group
            heapq.heappop(tenants)
            del self._lines[line.flow]
        return None

    def drop(self, group: Group) -> None:
        """Take a group out that `front` has just given."""
        groups = self._tenants[0][2].jobs[0][2].groups
        if groups[0][3] is group:
            heapq.heappop(groups)

    def clear(self) -> None:
        """Forget everybody."""
        self._tenants.clear()
        self._lines.clear()

    def __repr__(self) -> str:
        return f"<Line tenants={len(self._tenants)}>"
