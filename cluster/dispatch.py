"""Pure: the waiting side of the scheduler: groups of waiting requests, and who is served next.

Three things make a waiting request be looked at again: room on an endpoint (the group in front of
it is tried), a new request in its group, and a timer (limits that refill, cooldowns that end,
deadlines that come near, a choice to wait that is worth a second look). None of them looks at all
that wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

from agentcloud.cluster.fairness import Fairness
from agentcloud.cluster.pool import EndpointClass
from agentcloud.cluster.registry import Registry
from agentcloud.cluster.waiting import Group, GroupKey, Waiter
from agentcloud.cluster.weighing import Choice, Weighed, weigh

#: How soon a group that waits by choice, or for a cooldown, is weighed again.
RECONSIDER_S: Final = 0.25
#: Nothing is looked at again sooner than this, so that rounding cannot make a busy loop.
_SOONEST_S: Final = 0.001
_GROUPS_KEPT: Final = 1024

#: Grants or refuses a waiter with the choice that was made; returns whether it was decided (or
#: moved to another group), which frees its place in the queue.
Conclude = Callable[[Waiter, Choice], bool]
Refuse = Callable[[Waiter], None]
#: Refuses a waiter whose deadline nothing can meet any more; returns whether it did.
TooLate = Callable[[Waiter, Choice, float], bool]


class Dispatcher:
    """Groups of waiting requests and the order in which they are tried."""

    def __init__(
        self, registry: Registry, conclude: Conclude, refuse: Refuse, too_late: TooLate
    ) -> None:
        self.waiting = 0
        self.fairness = Fairness(registry.config.weights)
        self._too_late = too_late
        self._registry = registry
        self._conclude = conclude
        self._refuse = refuse
        self._groups: dict[GroupKey, Group] = {}
        self._version = registry.version
        self._timers: list[tuple[float, int, Callable[[Any, float], None], Any]] = []
        self._timer_count = 0
        self._freed: dict[EndpointClass, None] = {}
        self._fresh: list[Waiter] = []

    def add(self, waiter: Waiter, *, first: bool = False) -> None:
        """Let a request wait; the next `run` decides it if anything is free."""
        group = self._group(waiter)
        if group is None:
            self._refuse(waiter)
            return
        if not group.flow.waiting:
            self.fairness.wakes(group.flow, group.priority)
        group.add(waiter, first=first)
        self.waiting += 1
        self._fresh.append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Take a request out: decided, cancelled, or about to wait elsewhere."""
        if waiter.group is not None:
            waiter.group.remove(waiter)
            self.waiting -= 1

    def freed(self, cls: EndpointClass) -> None:
        """Something about a class changed that may admit a call."""
        self._freed[cls] = None

    def freed_all(self) -> None:
        """Anything may have changed."""
        for cls in self._registry.classes.values():
            self._freed[cls] = None

    def run(self, now_s: float) -> None:
        """Decide everything that can be decided now."""
        if self._version != self._registry.version:
            self._form_anew()
        timers = self._timers
        while timers and timers[0][0] <= now_s:
            _, _, act, what = heapq.heappop(timers)
            act(what, now_s)
        if self._version != self._registry.version:
            self._form_anew()
        # Those that wait come before those that have just come; deciding may free or add more.
        while self._freed or self._fresh:
            while self._freed:
                cls = next(iter(self._freed))
                del self._freed[cls]
                self._fill(cls, now_s)
            fresh, self._fresh = self._fresh, []
            for waiter in fresh:
                self._serve_fresh(waiter, now_s)

    def next_timer_s(self) -> float | None:
        """Clock time at which `run` should be called again, None if only events matter."""
        return self._timers[0][0] if self._timers else None

    def groups(self) -> list[Group]:
        """Groups with somebody waiting."""
        return [group for group in self._groups.values() if group.live]

    def _fill(self, cls: EndpointClass, now_s: float) -> None:
        """Give the room of a class to those in front of it, in order."""
        while cls.has_room():
            group = cls.front()
            if group is None:
                return
            head = group.head()
            if head is None or self._try(group, head, now_s):
                continue
            if cls in group.joined and cls.timer_s is not None and cls.timer_s > now_s:
                return  # Its limits hold the line: whoever is behind would overtake it here.
            cls.set_aside(group)
            self._look_again(group, now_s)

    def _serve_fresh(self, waiter: Waiter, now_s: float) -> None:
        group = waiter.group
        if group is None:
            return
        if group.has_deadline and group.head() is not waiter:
            if not self._try(group, waiter, now_s):
                self.at(self._latest_start_s(waiter, now_s), self._on_deadline, waiter)
            return
        if not group.stuck or len(group.joined) < len(group.options):
            self._serve(group, now_s)
        if group.has_deadline and waiter.group is not None:
            self.at(self._latest_start_s(waiter, now_s), self._on_deadline, waiter)

    def _serve(self, group: Group, now_s: float) -> None:
        while (head := group.head()) is not None:
            if not self._try(group, head, now_s):
                return

    def _try(self, group: Group, waiter: Waiter, now_s: float) -> bool:
        """Decide one request if its best option is free; else see to it that it is tried again."""
        choice = weigh(group, waiter, now_s, self._registry.usd_per_hour_waited)
        group.stuck = False
        if waiter.deadline_s is not None and self._too_late(waiter, choice, now_s):
            return True
        if choice.state is not None:
            return self._conclude(waiter, choice)
        declined = choice.declined()
        group.stuck = not declined
        # What is avoided is used once nothing else answers, which frees no slot.
        look_again = declined or bool(group.avoid)
        for each in choice.weighed:
            if each.state is None:
                each.option.cls.join(group)
                self._watch(each, now_s)
                look_again = look_again or (each.delay_s > 0.0 and not each.limit_s)
        if look_again:
            self._look_again(group, now_s)
        return False

    def _look_again(self, group: Group, now_s: float) -> None:
        """Weigh a group again soon, though nothing that it waits for may have happened."""
        if group.timer_s is None or group.timer_s <= now_s:
            group.timer_s = now_s + RECONSIDER_S
            self.at(group.timer_s, self._on_group, group)

    def _watch(self, each: Weighed, now_s: float) -> None:
        """Come back to a class when its account's limits admit the call in front."""
        cls = each.option.cls
        if each.limit_s > 0.0:
            at_s = now_s + max(each.limit_s, _SOONEST_S)
            if cls.timer_s is None or cls.timer_s <= now_s or at_s < cls.timer_s:
                cls.timer_s = at_s
                self.at(at_s, self._on_class, cls)

    def _latest_start_s(self, waiter: Waiter, now_s: float) -> float:
        """When a request with a deadline must be looked at again, at the latest."""
        assert waiter.deadline_s is not None
        group = waiter.group
        fastest_s = 0.0
        if group is not None:
            fastest_s = min(
                option.cls.full_estimate(
                    waiter.request.input_tokens,
                    option.cls.predictor.output_tokens(waiter.request.max_output_tokens),
                ).total_s
                for option in group.options
            )
        return max(now_s + RECONSIDER_S, waiter.deadline_s - 1.5 * fastest_s)

    def _on_class(self, cls: EndpointClass, now_s: float) -> None:
        if cls.timer_s is not None and cls.timer_s <= now_s:
            cls.timer_s = None
            self._freed[cls] = None

    def _on_group(self, group: Group, now_s: float) -> None:
        if group.timer_s is not None and group.timer_s <= now_s:
            group.timer_s = None
            self._serve(group, now_s)

    def _on_deadline(self, waiter: Waiter, now_s: float) -> None:
        if waiter.group is not None:
            self._try(waiter.group, waiter, now_s)

    def at(self, at_s: float, act: Callable[[Any, float], None], what: Any) -> None:
        """Call `act(what, now_s)` in the first `run` at or after `at_s`."""
        self._timer_count += 1
        heapq.heappush(self._timers, (at_s, self._timer_count, act, what))

    def _group(self, waiter: Waiter) -> Group | None:
        """The group of a request; None when nothing is able to serve it."""
        request, routing = waiter.request, waiter.request.routing
        flow = self.fairness.flow(routing.budget, routing.priority)
        key: GroupKey = (
            waiter.target,
            request.needs,
            request.input_tokens.bit_length(),
            request.max_output_tokens.bit_length(),
            waiter.policy,
            routing.priority,
            waiter.deadline_s is not None,
            routing.endpoint,
            request.avoid,
            waiter.free_only,
            self._registry.fit(request),
            flow,
        )
        group = self._groups.get(key)
        if group is None:
            options = self._registry.options(request, waiter.target, free_only=waiter.free_only)
            if not options:
                return None
            if len(self._groups) >= _GROUPS_KEPT:
                self._groups = {key: each for key, each in self._groups.items() if each.live}
            group = self._groups[key] = Group(
                key,
                routing.priority,
                options,
                waiter.policy,
                routing.endpoint,
                request.avoid,
                waiter.deadline_s is not None,
                flow,
            )
        return group

    def _form_anew(self) -> None:
        """Endpoints came or went: every waiting request finds its options again, in order."""
        self._version = self._registry.version
        known = {waiter.seq: waiter for group in self._groups.values() for waiter in group.all()}
        waiters = [known[seq] for seq in sorted(known)]
        self._groups.clear()
        for cls in self._registry.classes.values():
            cls.forget_waiting()
        self.waiting = 0
        self._fresh.clear()
        for waiter in waiters:
            waiter.group = None
        for waiter in waiters:
            self.add(waiter)
        self.freed_all()

    def __repr__(self) -> str:
        return f"<Dispatcher waiting={self.waiting} groups={len(self.groups())}>"
