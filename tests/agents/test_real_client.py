"""Agents over the real client, scheduler, HTTP and sandbox."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from agentcloud.agents import Context, agent, run_agent, tool
from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.errors import (
    BackendError,
    BudgetExceeded,
    NoEndpoint,
    OutputInvalid,
    Overloaded,
    Refused,
)
from agentcloud.cluster.sandbox import Fault, FaultKind, Sandbox
from agentcloud.cluster.scheduler_local import LocalScheduler
from tests.agents.conftest import LARGE, SMALL


class Verdict(BaseModel):
    mood: Literal["good", "bad"]
    reasons: list[str]


class Impossible(BaseModel):
    count: Annotated[int, Field(ge=10**12)]


@tool
def lookup(word: str) -> str:
    """Look a word up.

    Args:
        word: any word.
    """
    return f"{word}: a word"


async def test_a_validated_answer_with_its_receipt(client: AsyncAgentCloud) -> None:
    ctx = Context(client)
    verdict = await ctx.ask("Judge it.", output=Verdict, system="Be fair.")
    assert verdict.mood in ("good", "bad")
    (receipt,) = ctx.usage.receipts
    assert receipt.model == SMALL
    assert receipt.cost_usd is not None
    assert receipt.cost_usd > 0
    assert ctx.usage.endpoints == {f"main/{SMALL}": 1}


async def test_tiers_and_models(client: AsyncAgentCloud) -> None:
    ctx = Context(client)
    await ctx.ask("hi", tier="large")
    await ctx.ask("hi", model=LARGE)
    assert [receipt.model for receipt in ctx.usage.receipts] == [LARGE, LARGE]
    with pytest.raises(NoEndpoint, match="huge"):
        await ctx.ask("hi", tier="huge")


async def test_a_loop_with_tools(client: AsyncAgentCloud, sandbox: Sandbox) -> None:
    ctx = Context(client)
    assert (await ctx.ask("Use lookup for this.", tools=[lookup])).startswith("[synthetic")
    assert ctx.usage.calls == 2


async def test_tools_and_then_output(client: AsyncAgentCloud) -> None:
    ctx = Context(client)
    verdict = await ctx.ask("Use lookup for this.", tools=[lookup], output=Verdict, tier="large")
    assert isinstance(verdict, Verdict)
    assert ctx.usage.calls == 3


async def test_a_stream(client: AsyncAgentCloud) -> None:
    ctx = Context(client)
    pieces = [piece async for piece in ctx.stream("Tell me.", max_tokens=64)]
    assert len(pieces) > 1
    assert "".join(pieces).startswith("[synthetic")
    assert ctx.usage.calls == 1
    assert ctx.usage.output_tokens > 0


async def test_a_stream_left_early_holds_nothing(
    client: AsyncAgentCloud, scheduler: LocalScheduler
) -> None:
    stream = Context(client).stream("Tell me.")
    await anext(stream)
    await stream.aclose()
    assert scheduler.core.inflight == 0


async def test_a_cut_answer_gets_more_tokens(client: AsyncAgentCloud, sandbox: Sandbox) -> None:
    ctx = Context(client)
    verdict = await ctx.ask("Judge it.", output=Verdict, max_tokens=2, repairs=8)
    assert isinstance(verdict, Verdict)
    assert ctx.usage.calls > 1
    assert ctx.attempts.used == ctx.usage.calls - 1


async def test_a_refusal_is_told_apart(client: AsyncAgentCloud, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault(kind=FaultKind.REFUSAL))
    ctx = Context(client)
    with pytest.raises(Refused, match=SMALL):
        await ctx.ask("Judge it.", output=Verdict)
    assert ctx.usage.calls == 1


async def test_output_that_never_validates_keeps_what_it_cost(client: AsyncAgentCloud) -> None:
    ctx = Context(client)
    with pytest.raises(OutputInvalid, match="count: Input should be greater than") as caught:
        await ctx.ask("Count.", output=Impossible, repairs=1)
    assert caught.value.attempts == 2
    assert caught.value.usage is not None
    assert Decimal(caught.value.usage["cost_usd"]) == ctx.usage.cost_usd


async def test_a_used_up_budget(client: AsyncAgentCloud, scheduler: LocalScheduler) -> None:
    scheduler.core.open_budget(("job:j",), Decimal("0.000001"))
    with pytest.raises(BudgetExceeded, match="job:j"):
        await Context(client, budget=("job:j",)).ask("hi")


async def test_our_error_behind_anthropic_s_comes_through(
    client: AsyncAgentCloud, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED), count=2)
    ctx = Context(client, attempts=Attempts(0))
    with pytest.raises(Overloaded):
        await ctx.ask("hi")
    with pytest.raises(Overloaded):
        await anext(ctx.stream("hi", tier="large"))
    assert len(sandbox.calls) == 2


async def test_sends_of_a_call_that_fails_spend_attempts_too(
    client: AsyncAgentCloud, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault(kind=FaultKind.CONFLICT), count=3)
    ctx = Context(client, attempts=Attempts(2))
    with pytest.raises(BackendError) as caught:
        await ctx.ask("hi")
    assert caught.value.sends == len(sandbox.calls) == 3
    assert ctx.attempts.left == 0


async def test_all_layers_together_never_send_more_than_the_attempts_allow(
    client: AsyncAgentCloud, sandbox: Sandbox
) -> None:
    """Transport retries times output repairs: one budget of extra attempts bounds both."""

    @agent
    async def stubborn(ctx: Context, item: str) -> None:
        while True:  # the agent's own retries: a layer that ends only with the attempts
            try:
                await ctx.ask(item, output=Impossible, repairs=10)
            except (OutputInvalid, BackendError):
                continue

    sandbox.add_fault(Fault(kind=FaultKind.CONFLICT), count=2)
    attempts = Attempts(5)
    with pytest.raises(Exception, match="no attempts left for output Impossible"):
        await run_agent(stubborn, Context(client, attempts=attempts), "Count.")
    assert len(sandbox.calls) == 1 + attempts.limit


async def test_parallel_asks_share_the_attempts_exactly(
    client: AsyncAgentCloud, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED), count=100)
    ctx = Context(client, attempts=Attempts(5))
    asks = [ctx.ask(f"hi {number}") for number in range(4)]
    failures = await asyncio.gather(*asks, return_exceptions=True)
    assert all(isinstance(failure, BackendError) for failure in failures)
    assert len(sandbox.calls) == 4 + 5
    assert ctx.attempts.left == 0
