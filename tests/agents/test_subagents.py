"""Agents within agents: `ctx.run`, and `as_tool`."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, Field

from agentcloud.agents import Context, agent, as_tool, run_agent, tool
from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.errors import (
    AgentError,
    AttemptsExhausted,
    BudgetExceeded,
    OutputInvalid,
    TurnLimit,
)
from tests.agents.fakes import MemoryRecorder, ScriptedClient, call, message


class Topic(BaseModel):
    topic: str = Field(description="what to look for")
    depth: int = 1


class Found(BaseModel):
    facts: list[str]


class Node(BaseModel):
    name: str
    children: list[Node] = []


@tool
def shelf() -> str:
    """What is on the shelf."""
    return "books"


@agent(tier="large", max_tokens=77, tools=[shelf])
async def research(ctx: Context, item: Topic) -> Found:
    """Look a topic up.

    Answers with facts.
    """
    return await ctx.ask(item.topic, output=Found, tools=[])


@agent
async def shout(ctx: Context, words: str) -> str:
    """Say it loud."""
    return await ctx.ask(words)


@agent(tools=[as_tool(research), as_tool(shout, name="say_loud")])
async def write(ctx: Context, item: dict[str, Any]) -> str:
    return await ctx.ask("write about tides")


FACTS = '{"facts": ["the moon pulls"]}'


async def test_an_agent_runs_another_with_its_own_settings() -> None:
    @agent(tier="small")
    async def outer(ctx: Context, item: str) -> list[str]:
        assert ctx.path == ("outer",)
        found = await ctx.run(research, {"topic": item})
        assert ctx.defaults.tier == "small"
        return [*found.facts, await ctx.ask("sum up")]

    client = ScriptedClient(message(FACTS), message("tides"))
    ctx = Context(client, budget=("job:j",))
    assert await run_agent(outer, ctx, "tides") == ["the moon pulls", "tides"]
    assert [request["model"] for request in client.requests] == ["large", "small"]
    assert [request["max_tokens"] for request in client.requests] == [77, 512]
    assert [routing.budget for routing in client.routings] == [("job:j",)] * 2
    assert ctx.usage.calls == 2
    assert ctx.usage.cost_usd == Decimal("0.002")


async def test_attempts_deadline_and_records_are_the_task_s() -> None:
    @agent
    async def outer(ctx: Context, item: str) -> Found:
        clock.advance(4)
        return await ctx.run(research, {"topic": item})

    clock, recorder, attempts = FakeClock(), MemoryRecorder(), Attempts(1)
    client = ScriptedClient(message("{}"), message(FACTS))
    ctx = Context(client, clock=clock, deadline_s=10, recorder=recorder, attempts=attempts)
    await run_agent(outer, ctx, "tides")
    assert [routing.deadline_s for routing in client.routings] == [6, 6]
    assert attempts.used == 1
    again = Context(ScriptedClient(), clock=clock, recorder=MemoryRecorder(recorder.recorded))
    assert (await run_agent(outer, again, "tides")).facts == ["the moon pulls"]
    none_left = Context(ScriptedClient(message("{}")), clock=clock, attempts=Attempts(0))
    with pytest.raises(AttemptsExhausted):
        await run_agent(outer, none_left, "tides")


async def test_its_errors_come_through() -> None:
    @agent
    async def leave(ctx: Context, item: str) -> None:
        sys.exit(3)

    ctx = Context(ScriptedClient())
    with pytest.raises(AgentError, match="agent research: bad input: topic: Field required"):
        await ctx.run(research, {})
    with pytest.raises(AgentError, match=r"agent leave called exit\(3\)"):
        await ctx.run(leave, "x")


async def test_agents_that_run_each_other_without_end_are_stopped() -> None:
    @agent
    async def ping(ctx: Context, item: int) -> int:
        return await ctx.run(pong, item + 1)

    @agent
    async def pong(ctx: Context, item: int) -> int:
        return await ctx.run(ping, item + 1)

    with pytest.raises(
        AgentError, match=r"agent ping: 8 agents .*\(ping -> pong -> ping"
    ) as caught:
        await run_agent(ping, Context(ScriptedClient()), 0)
    assert "\n" not in str(caught.value)


async def test_an_agent_as_a_tool() -> None:
    client = ScriptedClient(
        message(call("research", topic="tides"), call("say_loud", "t2", words="hey")),
        message(FACTS),
        message("HEY"),
        message("An essay."),
    )
    ctx = Context(client)
    assert await run_agent(write, ctx, {}) == "An essay."
    by_name = {param["name"]: param for param in client.requests[0]["tools"]}
    assert by_name["research"]["description"] == "Look a topic up.\n\nAnswers with facts."
    schema = by_name["research"]["input_schema"]
    assert schema["required"] == ["topic"]
    assert schema["properties"]["topic"]["description"] == "what to look for"
    assert by_name["say_loud"]["input_schema"] == {
        "type": "object",
        "properties": {"words": {"type": "string"}},
        "required": ["words"],
        "additionalProperties": False,
    }
    assert client.requests[2]["messages"] == [{"role": "user", "content": "hey"}]
    facts, loud = client.requests[3]["messages"][-1]["content"]
    assert (facts["content"], loud["content"]) == ('{"facts":["the moon pulls"]}', "HEY")
    assert ctx.usage.calls == 4


async def test_bad_arguments_and_failures_go_back_to_the_model() -> None:
    client = ScriptedClient(
        message(call("research"), call("say_loud", "t2"), call("research", "t3", topic="x")),
        *[message("{}")] * 3,
        message("done"),
    )
    assert await run_agent(write, Context(client), {}) == "done"
    results = client.requests[-1]["messages"][-1]["content"]
    assert all(result["is_error"] for result in results)
    assert "topic: Field required" in results[0]["content"]
    assert "valid string" in results[1]["content"]
    assert "no valid Found" in results[2]["content"]


async def test_its_calls_count_in_the_limits_of_the_ask() -> None:
    client = ScriptedClient(message(call("say_loud", words="hey")), message("HEY"))
    with pytest.raises(TurnLimit, match="used 30 of its 25 tokens"):
        await Context(client).ask("go", tools=write.defaults.tools, max_total_tokens=25)
    clock = FakeClock()

    @agent
    async def slow(ctx: Context, item: str) -> str:
        """Take four seconds."""
        clock.advance(4)
        return await ctx.ask(item)

    client = ScriptedClient(message(call("slow", item="x")), message("x"), message("done"))
    ctx = Context(client, clock=clock)
    await ctx.ask("go", tools=[as_tool(slow)], deadline_s=10)
    assert [routing.deadline_s for routing in client.routings] == [10, 6, 6]


async def test_its_own_limit_of_money_ends_it_and_the_task_s_ends_all() -> None:
    @agent
    async def dear(ctx: Context, item: str) -> str:
        """Spend."""
        return await ctx.ask(item, tools=[shelf], max_usd=Decimal("0.001"))

    client = ScriptedClient(
        message(call("dear", item="x")), message(call("shelf")), message("too dear")
    )
    assert await Context(client).ask("go", tools=[as_tool(dear)]) == "too dear"
    assert "dear failed: budget of this ask" in str(client.requests[2]["messages"][-1]["content"])
    used_up = BudgetExceeded("job:j", used_usd=Decimal(1), limit_usd=Decimal(1))
    client = ScriptedClient(message(call("dear", item="x")), used_up)
    with pytest.raises(BudgetExceeded, match="job:j"):
        await Context(client).ask("go", tools=[as_tool(dear)])


async def test_models_that_call_each_other_without_end_are_stopped() -> None:
    @agent
    async def delegate(ctx: Context, item: str) -> str:
        """Let another do it."""
        return await ctx.ask(item, tools=[as_tool(delegate)])

    deep = [message(call("delegate", item="x")) for _ in range(8)]
    client = ScriptedClient(*deep, *(message(f"done {number}") for number in range(8)))
    ctx = Context(client)
    assert await run_agent(delegate, ctx, "x") == "done 7"
    assert "8 agents run inside each other" in str(client.requests[8]["messages"][-1])
    assert ctx.usage.calls == 16


def test_a_recursive_item_is_a_schema_of_objects() -> None:
    @agent
    async def prune(ctx: Context, item: Node) -> None:
        """Prune."""

    schema = as_tool(prune).input_schema
    assert schema["type"] == "object"
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert "Node" in schema["$defs"]


async def test_what_cannot_be_a_tool_says_why() -> None:
    @agent
    async def quiet(ctx: Context, item: str) -> None: ...

    @agent
    async def vague(ctx: Context, item: dict[str, Any]) -> None:
        """Do."""

    with pytest.raises(AgentError, match="agent quiet has no docstring"):
        as_tool(quiet)
    with pytest.raises(AgentError, match=r"agent vague as a tool: .* annotate it with a"):
        as_tool(vague)
    assert as_tool(quiet, description="Nothing.").description == "Nothing."
    with pytest.raises(AgentError, match=r"give it to an ask, or run the agent with ctx\.run"):
        await as_tool(shout).run({"words": "x"})


async def test_asks_that_fail_in_it_keep_their_usage() -> None:
    client = ScriptedClient(*[message("{}")] * 3)
    ctx = Context(client)
    with pytest.raises(OutputInvalid) as caught:
        await ctx.run(research, {"topic": "x"})
    assert caught.value.usage is not None
    assert caught.value.usage["calls"] == ctx.usage.calls == 3
