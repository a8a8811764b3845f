"""The agent loop: tools in parallel, limits, stop reasons, long conversations."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from agentcloud.agents import Context, Tool, tool
from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.errors import (
    AttemptsExhausted,
    BudgetExceeded,
    ContextTooLong,
    Refused,
    TurnLimit,
)
from tests.agents.fakes import ScriptedClient, call, message


class Total(BaseModel):
    total: int


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def fail() -> None:
    """Fail."""
    raise RuntimeError("no luck")


async def test_generate_tools_repeat() -> None:
    client = ScriptedClient(message("Let me see.", call("add", "t1", a=1, b=2)), message("3"))
    ctx = Context(client)
    assert await ctx.ask("1+2?", tools=[add]) == "3"
    assert client.requests[1]["messages"] == [
        {"role": "user", "content": "1+2?"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Let me see."}, call("add", "t1", a=1, b=2)],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "3"}],
        },
    ]
    assert ctx.usage.calls == 2
    assert ctx.attempts.used == 0


async def test_tools_of_one_turn_run_at_once_and_answer_in_order() -> None:
    second_ran = asyncio.Event()

    @tool
    async def first() -> str:
        """Wait for the second."""
        await second_ran.wait()
        return "first"

    @tool
    async def second() -> str:
        """Let the first go on."""
        second_ran.set()
        return "second"

    client = ScriptedClient(message(call("first", "t1"), call("second", "t2")), message("done"))
    await Context(client).ask("go", tools=[first, second])
    results = client.requests[1]["messages"][-1]["content"]
    assert [(r["tool_use_id"], r["content"]) for r in results] == [
        ("t1", "first"),
        ("t2", "second"),
    ]


async def test_failures_go_back_to_the_model() -> None:
    client = ScriptedClient(
        message(call("fail", "t1"), call("add", "t2", a="x", b=1), call("sub", "t3")),
        message("sorry"),
    )
    assert await Context(client).ask("go", tools=[fail, add]) == "sorry"
    results = client.requests[1]["messages"][-1]["content"]
    assert [r["is_error"] for r in results] == [True, True, True]
    assert "no luck" in results[0]["content"]
    assert "a: Input should be a valid integer" in results[1]["content"]
    assert results[2]["content"] == "no tool 'sub'; tools: fail, add"


async def test_a_used_up_budget_inside_a_tool_ends_the_loop_and_the_other_tools() -> None:
    cancelled = asyncio.Event()

    @tool
    async def spend() -> None:
        """Spend."""
        await asyncio.sleep(0)
        raise BudgetExceeded("job:j", used_usd=Decimal(1), limit_usd=Decimal(1))

    @tool
    async def wait() -> None:
        """Wait."""
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    client = ScriptedClient(message(call("wait", "t1"), call("spend", "t2")))
    with pytest.raises(BudgetExceeded):
        await Context(client).ask("go", tools=[spend, wait])
    assert cancelled.is_set()


async def test_a_cut_tool_call_is_not_run_but_asked_for_with_more_tokens() -> None:
    ran: list[str] = []

    @tool
    def delete(path: str) -> str:
        """Delete."""
        ran.append(path)
        return "ok"

    client = ScriptedClient(
        message(call("delete", path="/home"), stop_reason="max_tokens"),
        message(call("delete", path="/home/tmp")),
        message("done"),
    )
    await Context(client).ask("clean up", tools=[delete], max_tokens=10)
    assert ran == ["/home/tmp"]
    assert [request["max_tokens"] for request in client.requests] == [10, 20, 20]
    assert len(client.requests[1]["messages"]) == 1


async def test_a_tool_call_that_never_fits_is_an_error() -> None:
    cut = message(call("add", a=1, b=2), stop_reason="max_tokens")
    with pytest.raises(TurnLimit, match="tool add does not fit into max_tokens=40") as caught:
        await Context(ScriptedClient(cut, cut, cut)).ask("go", tools=[add], max_tokens=10)
    assert caught.value.turns == 3


async def test_more_tokens_spend_the_task_s_attempts() -> None:
    cut = message(call("add", a=1, b=2), stop_reason="max_tokens")
    with pytest.raises(AttemptsExhausted):
        await Context(ScriptedClient(cut), attempts=Attempts(0)).ask("go", tools=[add])


async def test_limits_end_a_loop_that_would_go_on() -> None:
    def turns() -> ScriptedClient:
        return ScriptedClient(*(message(call("add", a=1, b=2)) for _ in range(9)))

    client = turns()
    with pytest.raises(TurnLimit, match="made 3 turns"):
        await Context(client).ask("go", tools=[add], max_turns=3)
    assert len(client.requests) == 3
    client = turns()
    with pytest.raises(TurnLimit, match="used 60 of its 50 tokens"):
        await Context(client).ask("go", tools=[add], max_total_tokens=50)
    assert len(client.requests) == 4
    client = turns()
    with pytest.raises(BudgetExceeded, match=r"budget of this ask is used up: 0\.002 of 0\.0015"):
        await Context(client).ask("go", tools=[add], max_usd=Decimal("0.0015"))
    assert len(client.requests) == 2


async def test_a_loop_begins_no_turn_after_its_deadline() -> None:
    clock = FakeClock()

    @tool
    async def slow() -> str:
        """Take four seconds."""
        clock.advance(4)
        return "ok"

    for of_task, of_ask in ((10, None), (None, 10), (60, 10)):
        client = ScriptedClient(*(message(call("slow")) for _ in range(9)))
        ctx = Context(client, clock=clock, deadline_s=of_task)
        with pytest.raises(TurnLimit, match="made 3 calls without an answer before its deadline"):
            await ctx.ask("go", tools=[slow], deadline_s=of_ask)
        assert [routing.deadline_s for routing in client.routings] == [10, 6, 2]


async def test_asks_beside_each_other_have_their_own_limits() -> None:
    client = ScriptedClient(
        *(message(call("add", a=1, b=2)) for _ in range(4)), *(message("3") for _ in range(4))
    )
    ctx = Context(client)

    async def one(number: int) -> str:
        return await ctx.ask(f"{number}?", tools=[add], max_total_tokens=30)

    assert await ctx.map(one, range(4)) == ["3"] * 4
    assert ctx.usage.calls == 8


async def test_a_tool_that_may_be_repeated_is_before_the_model_sees_a_failure() -> None:
    ran: list[str] = []

    def flaky(name: str, retries: int) -> Tool[[int], Coroutine[Any, Any, str]]:
        @tool(name=name, retries=retries)
        async def run(a: int) -> str:
            """Fail twice."""
            ran.append(name)
            if ran.count(name) < 3:
                raise ConnectionError("try later")
            return "ok"

        return run

    clock, attempts = FakeClock(), Attempts(3)
    tools = [flaky("enough", 2), flaky("too_few", 1), flaky("none", 0)]
    client = ScriptedClient(
        message(call("enough", "t1", a="x")),
        *(message(call(one.name, a=1)) for one in tools),
        message("done"),
    )
    await Context(client, clock=clock, attempts=attempts).ask("go", tools=tools)
    results = [request["messages"][-1]["content"][0] for request in client.requests[1:]]
    assert [result.get("is_error", False) for result in results] == [True, False, True, True]
    assert results[1]["content"] == "ok"
    assert ran == ["enough"] * 3 + ["too_few"] * 2 + ["none"]
    assert attempts.used == 3
    assert all(
        slept <= longest for slept, longest in zip(clock.slept_s, (0.5, 1, 0.5), strict=True)
    )


async def test_a_tool_is_not_repeated_when_the_task_has_no_attempts_left() -> None:
    ran: list[int] = []

    @tool(retries=5)
    def broken() -> None:
        """Fail."""
        ran.append(1)
        raise ConnectionError("try later")

    client = ScriptedClient(message(call("broken")), message("sorry"))
    ctx = Context(client, attempts=Attempts(1), clock=FakeClock())
    assert await ctx.ask("go", tools=[broken]) == "sorry"
    assert len(ran) == 2


async def test_pause_turn_goes_on_and_refusal_ends() -> None:
    client = ScriptedClient(message("searching", stop_reason="pause_turn"), message("found"))
    assert await Context(client).ask("go") == "found"
    assert [m["role"] for m in client.requests[1]["messages"]] == ["user", "assistant"]
    with pytest.raises(Refused):
        await Context(ScriptedClient(message("no", stop_reason="refusal"))).ask("go", tools=[add])


async def test_output_after_tools_is_asked_for_in_one_more_turn() -> None:
    client = ScriptedClient(
        message(call("add", a=1, b=2)), message("It is 3."), message('{"total": 3}')
    )
    assert await Context(client).ask("1+2?", tools=[add], output=Total) == Total(total=3)
    first, _, last = client.requests
    assert "output_config" not in first
    assert last["tool_choice"] == {"type": "none"}
    assert last["tools"] == first["tools"]
    assert last["output_config"]["format"]["type"] == "json_schema"
    roles = [m["role"] for m in last["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


async def test_output_after_tools_that_already_validates_costs_no_further_call() -> None:
    client = ScriptedClient(message(call("add", a=1, b=2)), message('{"total": 3}'))
    assert await Context(client).ask("1+2?", tools=[add], output=Total) == Total(total=3)


async def test_a_too_long_conversation_loses_its_oldest_turns() -> None:
    @tool
    def read(page: int) -> str:
        """Read a page."""
        return f"page {page}: " + "words " * 100

    client = ScriptedClient(
        message(call("read", "t1", page=1)),
        message(call("read", "t2", page=2)),
        message(call("read", "t3", page=3)),
        ContextTooLong("too long", context_tokens=1500, prompt_tokens=700),
        message("done"),
    )
    ctx = Context(client)
    assert await ctx.ask("read", tools=[read], max_tokens=1000) == "done"
    kept = client.requests[-1]["messages"]
    assert kept[0] == {"role": "user", "content": "read"}
    calls = {b["id"] for m in kept if m["role"] == "assistant" for b in m["content"]}
    results = {b["tool_use_id"] for m in kept[1:] if m["role"] == "user" for b in m["content"]}
    assert calls == results
    assert "t3" in calls
    assert "t1" not in calls
    assert ctx.attempts.used == 1


async def test_a_prompt_that_is_too_long_by_itself_is_the_endpoint_s_error() -> None:
    client = ScriptedClient(ContextTooLong("prompt is too long", context_tokens=10))
    with pytest.raises(ContextTooLong, match="prompt is too long"):
        await Context(client).ask("long")
    assert len(client.requests) == 1
