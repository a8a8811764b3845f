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
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from agentcloud.cluster.fairness import Flow
    from agentcloud.cluster.pool import EndpointClass
    from agentcloud.cluster.waiting import Group


class _Waiting(Protocol):
    """Somebody who waits, or nobody."""

    def front(self, cls: EndpointClass) -> Group | None:
        """The group whose first request is next at a class."""
        ...


class _Groups:
    """The waiting groups of one job."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Group]] = []

    def push(self, group: Group) -> None:
        heapq.heappush(self._heap, (*group.first(), id(group), group))

    def drop(self, group: Group) -> None:
        if self._heap and self._heap[0][3] is group:
            heapq.heappop(self._heap)

    def front(self, cls: EndpointClass) -> Group | None:
        heap = self._heap
        while heap:
            _, seq, _, group = heap[0]
            if cls not in group.joined:
                heapq.heappop(heap)
            elif not group.live:
                group.joined.discard(cls)
                heapq.heappop(heap)
            elif (first := group.first())[1] != seq:
                heapq.heapreplace(heap, (*first, id(group), group))
            else:
                return group
        return None


_Below = TypeVar("_Below", bound=_Waiting)


class _Flows(Generic[_Below]):
    """Flows by tag, and who waits in each."""

    __slots__ = ("_heap", "_known", "_make")

    def __init__(self, make: Callable[[], _Below]) -> None:
        self._make = make
        self._heap: list[tuple[float, int, Flow, _Below]] = []
        self._known: dict[Flow, _Below] = {}

    def below(self, flow: Flow) -> _Below:
        """Who waits in a flow, to add to."""
        found = self._known.get(flow)
        if found is None:
            found = self._known[flow] = self._make()
            heapq.heappush(self._heap, (flow.tag, id(flow), flow, found))
        return found

    def __len__(self) -> int:
        return len(self._heap)

    def front(self, cls: EndpointClass) -> Group | None:
        heap = self._heap
        while heap:
            tag, _, flow, below = heap[0]
            if flow.tag != tag:
                heapq.heapreplace(heap, (flow.tag, id(flow), flow, below))
            elif (group := below.front(cls)) is not None:
                return group
            else:
                heapq.heappop(heap)
                del self._known[flow]
        return None


class Line:
    """Who waits for one class."""

    __slots__ = ("_tenants",)

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everybody."""
        self._tenants = _Flows(lambda: _Flows(_Groups))

    def push(self, group: Group) -> None:
        """Put a group where its first request belongs; again whenever it came forward."""
        self._of(group).push(group)

    def front(self, cls: EndpointClass) -> Group | None:
        """The group whose first request is next at the class."""
        return self._tenants.front(cls)

    def drop(self, group: Group) -> None:
        """Take a group out if it stands in front."""
        self._of(group).drop(group)

    def _of(self, group: Group) -> _Groups:
        tenant = group.flow.parent
        assert tenant is not None
        return self._tenants.below(tenant).below(group.flow)

    def __repr__(self) -> str:
        return f"<Line tenants={len(self._tenants)}>"
