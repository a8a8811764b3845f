"""Cascades over the real engine, scheduler and client: a local tier below a hosted one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Literal

import pytest
import pytest_asyncio
from pydantic import BaseModel

from agentcloud.agents import Cascade, Context, agreement, logprob
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.errors import BudgetExceeded
from agentcloud.tasks.attempt import call_summary
from tests.cluster.serving import HAIKU, Served, serving
from tests.conftest import RunningReplica

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(420)]


class Verdict(BaseModel):
    mood: Literal["good", "bad"]


class Long(BaseModel):
    """More than the local model writes in the tokens it is given."""

    word: Literal["a-word-that-takes-many-tokens-of-a-tiny-vocabulary"]


@pytest_asyncio.fixture
async def served(
    monkeypatch: pytest.MonkeyPatch, replica: RunningReplica, tiny_model: object
) -> AsyncIterator[Served]:
    async with serving(
        monkeypatch,
        local=replace(replica.spec, usd_per_hour=Decimal(3600)),
        models={"tiny": {"path": str(tiny_model), "usd_per_gpu_hour": 3600}},
        hosted={HAIKU: {"account": "main", "tier": "large"}},
    ) as running:
        yield running


def context(served: Served, *budget: str) -> Context:
    return Context(AsyncAgentCloud(served.inference), budget=budget)


async def test_what_fails_the_schema_goes_to_the_hosted_tier_and_both_are_charged(
    served: Served,
) -> None:
    served.scheduler.core.open_budget(("job:j",), Decimal(1))
    ctx = context(served, "job:j")
    answer = await ctx.ask("Say it.", output=Long, tier="auto", max_tokens=4)
    assert answer.word.startswith("a-word")
    cheap, dear = ctx.usage.receipts[0], ctx.usage.receipts[1]
    assert (cheap.endpoint, dear.endpoint) == ("replica:tiny:0", f"main/{HAIKU}")
    assert cheap.cost_usd is not None
    assert cheap.cost_usd > 0
    line = call_summary(dear)
    assert line["escalated_from"] == ["small"]
    assert line["escalation"] == "small: cut off at max_tokens=4"
    assert Decimal(line["spent_elsewhere_usd"]) == cheap.cost_usd
    (job,) = [b for b in served.scheduler.core.budgets() if b.scope == "job:j"]
    assert job.spent_usd == ctx.usage.cost_usd
    assert "escalated_from" not in call_summary(cheap)


async def test_a_validator_of_ones_own_and_samples_in_parallel(served: Served) -> None:
    ctx = context(served)

    def never(_: Verdict) -> bool:
        return ctx.usage.receipts[-1].endpoint.startswith("main/")

    await ctx.ask("Judge.", output=Verdict, tier=Cascade(("small", "large"), never))
    assert list(ctx.usage.endpoints) == ["replica:tiny:0", f"main/{HAIKU}"]

    ctx = context(served)
    both = Cascade(("small", "large"), agreement(4, at_least=0))
    assert (await ctx.ask("Judge.", output=Verdict, tier=both)).mood in ("good", "bad")
    assert ctx.usage.endpoints == {"replica:tiny:0": 4}
    shares = {receipt.agreement for receipt in ctx.usage.receipts}
    assert shares <= {0.5, 0.75, 1.0}
    assert len(shares) == 1


async def test_a_threshold_below_what_the_engine_tells_takes_and_above_escalates(
    served: Served,
) -> None:
    ctx = context(served)
    await ctx.ask("Judge.", output=Verdict, tier=Cascade(("small", "large"), logprob(-1e9)))
    (receipt,) = ctx.usage.receipts
    told = receipt.mean_logprob
    assert told is not None
    assert told < 0
    assert call_summary(receipt)["mean_logprob"] == told
    above = Cascade(("small", "large"), logprob(told / 1000))
    await ctx.ask("Judge.", output=Verdict, tier=above, temperature=0)
    assert [each.endpoint for each in ctx.usage.receipts[1:]] == ["replica:tiny:0", f"main/{HAIKU}"]
    assert ctx.usage.receipts[2].escalated is not None
    assert "mean log-probability" in ctx.usage.receipts[2].escalated.reasons[0]


async def test_a_budget_holds_for_all_tiers_together(served: Served) -> None:
    served.scheduler.core.open_budget(("job:k",), Decimal("0.0000001"))
    ctx = context(served, "job:k")
    with pytest.raises(BudgetExceeded, match="job:k"):
        await ctx.ask("Say it.", output=Long, tier="auto", max_tokens=4)
    assert served.sends == 0
