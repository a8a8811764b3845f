"""Pure: requests that wait, in groups of those that any able endpoint could serve alike."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from agentcloud.cluster.contracts import Feature, LeaseRequest, Policy
from agentcloud.cluster.fairness import LAST, Flow, Key
from agentcloud.cluster.pool import EndpointClass

#: A request without a deadline stands where one with a deadline so far ahead does: it is overtaken
#: by those due sooner, and never for longer.
PATIENCE_S: Final = 600.0

GroupKey = tuple[object, ...]


class Waiter:
    """One request from its submission to its decision.

    Attributes:
        seq: order of submission.
        deadline_s: clock time by which the answer should be whole, None without a deadline.
        target: tier or model it waits for; another than `asked` where that cannot serve it.
        why_target: why it is another, in words.
        spent: endpoints whose retry quota was used up when it was their turn.
        held: it waits for another call to write a hosted model's cache.
        holds: how often it did.
        unparked: it waited for money, which has come back and which it has not taken yet.
    """

    __slots__ = (
        "asked",
        "deadline_s",
        "decided",
        "free_only",
        "group",
        "held",
        "holds",
        "policy",
        "request",
        "seq",
        "spent",
        "submitted_s",
        "target",
        "unparked",
        "why_target",
    )

    def __init__(
        self,
        request: LeaseRequest,
        seq: int,
        submitted_s: float,
        deadline_s: float | None,
        target: str,
        policy: Policy,
        asked: str,
        why_target: str,
    ) -> None:
        self.request = request
        self.seq = seq
        self.submitted_s = submitted_s
        self.deadline_s = deadline_s
        self.target = target
        self.policy = policy
        self.asked = asked
        self.why_target = why_target
        self.free_only = False
        self.decided = False
        self.group: Group | None = None
        self.spent: frozenset[str] = frozenset()
        self.held = False
        self.holds = 0
        self.unparked = False

    @property
    def is_fallback(self) -> bool:
        """Whether it waits for another tier than it was meant for."""
        return self.target != self.asked


@dataclass(frozen=True, slots=True)
class Option:
    """A class as a group sees it: prices for prompts of the group's size.

    Attributes:
        priced: whether its worst case is known; without, it is used only where no budget is
            capped.
    """

    cls: EndpointClass
    usd_per_input: float
    usd_per_output: float
    priced: bool

    @property
    def is_free(self) -> bool:
        """Whether a call there reserves no money."""
        return self.priced and self.usd_per_input == 0.0 and self.usd_per_output == 0.0


@dataclass(slots=True, eq=False)
class Group:
    """Requests of like target, needs, size, policy, flow and priority.

    First come first served; those with deadlines: the earliest deadline first.

    Deciding looks at groups, never at all that wait in them.

    Attributes:
        joined: classes that will try it when they have room.
        stuck: when it was last tried nothing able was free, so another request behind its first
            changes nothing.
    """

    key: GroupKey
    priority: int
    options: tuple[Option, ...]
    policy: Policy
    pin: str | None
    avoid: frozenset[str]
    has_deadline: bool
    flow: Flow
    waiters: deque[Waiter] = field(default_factory=deque)
    by_deadline: list[tuple[float, int, Waiter]] = field(default_factory=list)
    live: int = 0
    joined: set[EndpointClass] = field(default_factory=set)
    stuck: bool = False
    timer_s: float | None = None

    def add(self, waiter: Waiter, *, first: bool = False) -> None:
        """Queue a request, at the end or back in front."""
        waiter.group = self
        if self.has_deadline:
            assert waiter.deadline_s is not None
            heapq.heappush(self.by_deadline, (waiter.deadline_s, waiter.seq, waiter))
        elif first:
            self.waiters.appendleft(waiter)
        else:
            self.waiters.append(waiter)
        self.live += 1
        flow = self.flow
        flow.waiting += 1
        if flow.parent is not None:
            flow.parent.waiting += 1
        for option in self.options:
            option.cls.backlog += 1
        if self.joined and self.head() is waiter:
            # It may stand further in front than the one that the classes know of.
            for cls in self.joined:
                cls.came_forward(self)

    def remove(self, waiter: Waiter) -> None:
        """Take a request out, decided or moved; its place in the queue is swept later."""
        waiter.group = None
        self.live -= 1
        flow = self.flow
        flow.waiting -= 1
        if flow.parent is not None:
            flow.parent.waiting -= 1
        for option in self.options:
            option.cls.backlog -= 1
        if self.waiters and self.waiters[0] is waiter:
            self.waiters.popleft()

    def head(self) -> Waiter | None:
        """The first request still waiting here."""
        if self.has_deadline:
            heap = self.by_deadline
            while heap and heap[0][2].group is not self:
                heapq.heappop(heap)
            return heap[0][2] if heap else None
        waiters = self.waiters
        while waiters and waiters[0].group is not self:
            waiters.popleft()
        return waiters[0] if waiters else None

    def all(self) -> Iterator[Waiter]:
        """Everybody who waits here, in no order."""
        for waiter in (*self.waiters, *(each for _, _, each in self.by_deadline)):
            if waiter.group is self:
                yield waiter

    def place(self, waiter: Waiter) -> Key:
        """Where a request of this group stands among all that wait for an endpoint."""
        flow = self.flow
        tenant = 0.0 if flow.parent is None else flow.parent.tag
        due_s = waiter.deadline_s
        if due_s is None:
            due_s = waiter.submitted_s + PATIENCE_S
        return tenant, flow.tag, due_s, waiter.seq

    def first(self) -> tuple[float, int]:
        """Where its first request stands in its flow; it must have one."""
        head = self.head()
        assert head is not None
        due_s = head.deadline_s
        return head.submitted_s + PATIENCE_S if due_s is None else due_s, head.seq

    def front(self) -> Key:
        """Where its first request stands."""
        head = self.head()
        return LAST if head is None else self.place(head)

    @property
    def able(self) -> int:
        """Endpoints able to serve it."""
        if self.pin:
            return 1
        able = 0
        for option in self.options:
            able += len(option.cls.members)
        return able

    def __repr__(self) -> str:
        models = ",".join(option.cls.spec.model for option in self.options)
        return f"<Group {models} priority={self.priority} waiting={self.live}>"


def needs_of(features: frozenset[Feature]) -> str:
    """Features as words, in a fixed order."""
    return ", ".join(sorted(features))
