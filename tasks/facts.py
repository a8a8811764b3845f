"""What ended tasks cost and whether their answers validated, told to the scheduler's alarms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

import ray

from agentcloud.cluster.alarm_watch import TaskFacts
from agentcloud.cluster.alarms import ALL
from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME

#: Facts travel together, so often at most, seconds.
TELL_EVERY_S: Final = 1.0


class FactBook:
    """Sums up each task over all its attempts."""

    def __init__(self) -> None:
        self._calls: dict[str, list[dict[str, Any]]] = {}
        self._facts: list[TaskFacts] = []

    def __repr__(self) -> str:
        return f"FactBook({len(self._calls)} open, {len(self._facts)} to tell)"

    def attempted(self, task_id: str, calls: Sequence[dict[str, Any]]) -> None:
        """An attempt at a task ended, with these call summaries."""
        self._calls.setdefault(task_id, []).extend(calls)

    def ended(self, task_id: str) -> None:
        """A task ended for good."""
        calls = self._calls.pop(task_id, [])
        if calls:
            self._facts.append(facts_of(calls))

    def dropped(self, task_id: str) -> None:
        """A task was stopped half-way: it says nothing of what one costs."""
        self._calls.pop(task_id, None)

    def drain(self) -> list[TaskFacts]:
        """Facts since the last call."""
        facts, self._facts = self._facts, []
        return facts


def facts_of(calls: Iterable[dict[str, Any]]) -> TaskFacts:
    """What a task's calls say; where one's cost is not known, the sum is not either."""
    costs: dict[str, Decimal | None] = {}
    checked: dict[str, tuple[int, int]] = {}
    for call in calls:
        for endpoint in (call["endpoint"], ALL):
            before, cost = costs.get(endpoint, Decimal(0)), call["cost_usd"]
            costs[endpoint] = None if before is None or cost is None else before + cost
        if (valid := call.get("valid")) is not None:
            answers, invalid = checked.get(call["endpoint"], (0, 0))
            checked[call["endpoint"]] = (answers + 1, invalid + (not valid))
    known = {endpoint: cost for endpoint, cost in costs.items() if cost is not None}
    return TaskFacts(known, checked)


def tell(kind: str, facts: list[TaskFacts]) -> None:
    """Tell the scheduler, without waiting for it; where it is gone there is nobody to alarm."""
    if facts:
        with contextlib.suppress(ValueError):
            scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
            scheduler.tasks_ended.remote(kind, facts)
