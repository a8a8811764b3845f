"""Failures on record elsewhere that concern routing, retries and money: see docs/peers-tests.md."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from agentcloud.cluster.contracts import LoadReport, Routing, Timings
from agentcloud.cluster.errors import BudgetExceeded
from agentcloud.cluster.sandbox import Latency, RateLimits, SandboxConfig
from tests.cluster.scheduling import Bed, ok, replica
from tests.cluster.serving import PARAMS, serving, until


async def test_parallel_turns_never_spend_more_than_their_session_s_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LiteLLM 34732, 26672: $99 were spent on a budget of $30."""
    async with serving(monkeypatch) as served:
        core = served.scheduler.core
        await served.inference.create(PARAMS)
        limit_usd = served.scheduler.leases[0].reserved_usd * 3
        core.open_budget(("session:a",), limit_usd)
        routing = Routing(budget=("session:a",))
        answers: list[Any] = await asyncio.gather(
            *(served.inference.create(PARAMS, routing) for _ in range(40)),
            return_exceptions=True,
        )
        refused = [each for each in answers if isinstance(each, BudgetExceeded)]
        served_well = [each for each in answers if not isinstance(each, BaseException)]
        assert len(refused) + len(served_well) == 40
        assert {error.scope for error in refused} == {"session:a"}
        billed = sum((each.agentcloud.cost_usd for each in served_well), Decimal(0))
        assert len(served_well) >= 3
        assert 0 < billed <= limit_usd
        session = core.budgets()[1]
        assert session.spent_usd == billed
        assert session.reserved_usd == 0
        assert served.sends == 1 + len(served_well)


async def test_concurrent_calls_never_overrun_the_tokens_of_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LiteLLM 5783. The server counts too, and has nothing to refuse."""
    per_minute = 640
    sandbox = SandboxConfig(
        limits={"*": RateLimits(output_tokens_per_minute=per_minute)},
        latency={"*": Latency(ttft_s=0.05)},
    )
    ours = {"*": {"output_tokens_per_minute": per_minute}}
    async with serving(monkeypatch, sandbox, limits=ours) as served:
        core = served.scheduler.core
        calls = [asyncio.create_task(served.inference.create(PARAMS)) for _ in range(60)]

        def made() -> int:
            return sum(call.usage.get("output_tokens", 0) for call in served.sandbox.calls)

        # Between two waves of calls nothing is in flight either: the first, of ten that hold their
        # most, makes half of what a minute allows.
        await until(
            lambda: core.waiting > 0 and core.inflight == 0 and made() > per_minute / 2,
        )
        generated = made()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert {call.status for call in served.sandbox.calls} == {200}
        assert per_minute / 2 < generated <= per_minute


def test_the_busiest_replica_does_not_look_idle() -> None:
    """production-stack 1073: by what it had done, the one that was stuck looked the least busy."""
    bed = Bed(replica(0, slots=64), replica(1, slots=64))
    # Its calls take for ever; what it said of itself is from before they came.
    idle = LoadReport(running=0)
    bed.core.report_load({"replica:m:0": idle, "replica:m:1": idle})
    stuck, other = Routing(endpoint="replica:m:0"), Routing(endpoint="replica:m:1")
    for index in range(20):
        bed.take(f"stuck{index}", routing=stuck)
    # The other one has done a lot, alone and crowded, and says that it is at work.
    for size in (1, 20) * 10:
        leases = [bed.take(f"done{size}.{index}", routing=other) for index in range(size)]
        bed.clock.advance(5.0)
        for lease in leases:
            timings = Timings(0.0, 0.2, 1.0 + 0.05 * size, 1.2 + 0.05 * size)
            bed.tell(replace(ok(lease), timings=timings))
    bed.take("now", routing=other)
    bed.core.report_load({"replica:m:0": idle, "replica:m:1": LoadReport(running=1)})
    for name in ("replica:m:0", "replica:m:1"):
        bed.core.endpoint(name).slowness = 1.0
    for index in range(10):
        bed.clock.advance(1.0)
        assert bed.take(f"c{index}").endpoint.name == "replica:m:1"
