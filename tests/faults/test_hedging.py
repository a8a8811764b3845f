"""Slow idempotent calls over real HTTP: a second send elsewhere, one answer, both costs shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import Outcome, Routing
from agentcloud.cluster.errors import CallTimeout
from agentcloud.cluster.sandbox import Fault, FaultKind
from tests.cluster.serving import HAIKU, PARAMS, Served, serving, until

#: The cheaper one, which is chosen first.
FIRST = "claude-haiku-5-5"
TWO: dict[str, Any] = {
    "hosted": {FIRST: {"account": "main"}, HAIKU: {"account": "main"}},
    "hedge": {"min_calls": 3, "max_share": 1.0},
}
SMALL = {**PARAMS, "model": "small"}
TWICE = Routing(idempotent=True)
HANGS = Fault(kind=FaultKind.HANG, model=FIRST)


@asynccontextmanager
async def warm(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> AsyncIterator[Served]:
    """Served by two endpoints, with enough calls behind to know which is slow.

    To the scheduler they took no time at all, so whatever takes a millisecond is slow.
    """
    async with serving(monkeypatch, clock=FakeClock(), **(TWO | changes)) as served:
        for _ in range(3):
            message = await served.inference.create(SMALL)
            assert message.agentcloud.model == FIRST
        served.sandbox.reset()
        served.scheduler.settled.clear()
        served.scheduler.leases.clear()
        yield served


async def test_a_slow_call_is_answered_by_its_second_send(monkeypatch: pytest.MonkeyPatch) -> None:
    async with warm(monkeypatch) as served:
        served.sandbox.add_fault(HANGS)
        message = await served.inference.create(SMALL, TWICE)
        receipt = message.agentcloud
        assert (receipt.model, receipt.attempts, receipt.hedged) == (HAIKU, 2, True)
        assert receipt.reason.startswith("second send beside a slow one: ")
        assert [call.model for call in served.sandbox.calls] == [FIRST, HAIKU]
        # The loser's connection was closed; what it cost is not known, and said so.
        await until(lambda: served.sandbox.calls[0].outcome == "cancelled")
        first, second = served.scheduler.leases
        assert receipt.cost_usd is None
        assert receipt.unknown_usd == first.reserved_usd > 0
        assert served.scheduler.core.budgets()[0].unknown_usd == first.reserved_usd
        by_lease = {settled.lease_id: settled for settled in served.scheduler.settled}
        assert by_lease[first.lease_id].outcome is Outcome.UNKNOWN
        assert by_lease[first.lease_id].beaten
        assert by_lease[second.lease_id].outcome is Outcome.OK
        assert served.scheduler.core.endpoint(f"main/{FIRST}").circuit.failures == 0


async def test_only_marked_calls_and_only_slow_ones_are_sent_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with warm(monkeypatch) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.SLOW_FIRST_TOKEN, delay_s=0.3, model=FIRST))
        message = await served.inference.create(SMALL)
        assert (message.agentcloud.hedged, served.sends) == (False, 1)
        assert served.scheduler.leases[-1].hedge_after_s is None
        assert message.agentcloud.unknown_usd == 0


async def test_a_first_send_that_answers_after_all_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    async with warm(monkeypatch) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.SLOW_FIRST_TOKEN, delay_s=0.3, model=FIRST))
        served.sandbox.add_fault(Fault(kind=FaultKind.HANG, model=HAIKU))
        message = await served.inference.create(SMALL, TWICE)
        assert (message.agentcloud.model, message.agentcloud.hedged) == (FIRST, True)
        assert message.agentcloud.cost_usd is None
        await until(lambda: served.sandbox.calls[1].outcome == "cancelled")


async def test_a_second_send_that_fails_leaves_the_first_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with warm(monkeypatch) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.SLOW_FIRST_TOKEN, delay_s=0.3, model=FIRST))
        served.sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED, model=HAIKU))
        receipt = (await served.inference.create(SMALL, TWICE)).agentcloud
        assert (receipt.model, receipt.attempts) == (FIRST, 2)
        assert receipt.cost_usd is not None, "the failed one cost nothing"
        assert receipt.cost_usd > 0


async def test_when_both_fail_the_call_is_tried_again_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with warm(monkeypatch, retry={"base_s": 0.01}) as served:
        served.sandbox.add_fault(HANGS)
        served.sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED, model=HAIKU))
        once = Routing(idempotent=True, timeout_s=0.3, max_attempts=2)
        with pytest.raises(CallTimeout) as caught:
            await served.inference.create(SMALL, once)
        assert caught.value.sends == served.sends == 2
        served.sandbox.add_fault(HANGS)
        served.sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED, model=HAIKU))
        thrice = Routing(idempotent=True, timeout_s=0.3, max_attempts=3)
        receipt = (await served.inference.create(SMALL, thrice)).agentcloud
        assert (receipt.attempts, receipt.cost_usd) == (3, None)
        assert receipt.unknown_usd > 0, "of the one that timed out"


@pytest.mark.parametrize("in_the_way", ["attempts", "task", "money", "share", "endpoint"])
async def test_what_a_second_send_needs(monkeypatch: pytest.MonkeyPatch, in_the_way: str) -> None:
    changes: dict[str, Any] = {}
    routing = {
        "attempts": Routing(idempotent=True, max_attempts=1),
        "task": Routing(idempotent=True, extra_sends=Attempts(0)),
        "money": Routing(idempotent=True, budget=("job:a",)),
    }.get(in_the_way, TWICE)
    if in_the_way == "share":
        changes["hedge"] = {"min_calls": 3, "max_share": 0}
    if in_the_way == "endpoint":
        changes["hosted"] = {FIRST: {"account": "main"}}
    async with warm(monkeypatch, **changes) as served:
        if in_the_way == "money":
            # Room for the worst case of the first send alone.
            served.scheduler.core.open_budget(("job:a",), Decimal("0.0001"))
        served.sandbox.add_fault(Fault(kind=FaultKind.SLOW_FIRST_TOKEN, delay_s=0.3, model=FIRST))
        receipt = (await served.inference.create(SMALL, routing)).agentcloud
        assert (served.sends, receipt.attempts, receipt.hedged) == (1, 1, False)
        assert served.scheduler.core.snapshot()["waiting_for_budget"] == 0
        assert receipt.cost_usd is not None


async def test_cancelling_the_call_ends_both_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with warm(monkeypatch) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.HANG), count=2)
        task = asyncio.create_task(served.inference.create(SMALL, TWICE))
        await until(lambda: served.sends == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: {call.outcome for call in served.sandbox.calls} == {"cancelled"})
        outcomes = [settled.outcome for settled in served.scheduler.settled]
        assert outcomes == [Outcome.UNKNOWN] * 2
