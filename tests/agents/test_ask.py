"""`ctx.ask`: structured outputs, repair, truncation, refusal, attempts, records."""

from __future__ import annotations

import pickle
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from anthropic.types import Message
from pydantic import BaseModel, Field

from agentcloud.agents import Cascade, Context, agent, agreement, tool
from agentcloud.agents.agent import run_agent
from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import BudgetState
from agentcloud.cluster.errors import (
    AgentCloudError,
    AgentError,
    AttemptsExhausted,
    ContextTooLong,
    InvalidRequest,
    OutputInvalid,
    Overloaded,
    Refused,
)
from tests.agents.fakes import MemoryRecorder, Reply, ScriptedClient, call, message


class Rating(BaseModel):
    mood: Literal["good", "bad"]
    stars: Annotated[int, Field(ge=1, le=5)]


class Tree(BaseModel):
    children: list[Tree]


@tool
def nothing() -> str:
    """Do nothing."""
    return "nothing"


GOOD = '{"mood": "good", "stars": 5}'
SIX = '{"mood": "good", "stars": 6}'


async def test_text_and_what_is_sent() -> None:
    client = ScriptedClient(message("hello"))
    ctx = Context(client, job_id="j1", task_id="t1", budget=("job:j1", "task:j1/t1"))
    assert await ctx.ask("hi", system="be kind", tier="large", temperature=0, top_p=0.5) == "hello"
    assert client.requests == [
        {
            "model": "large",
            "max_tokens": 512,
            "messages": [{"role": "user", "content": "hi"}],
            "system": "be kind",
            "temperature": 0,
            "top_p": 0.5,
        }
    ]
    assert client.routings[0].tier == "large"
    assert client.routings[0].budget == ("job:j1", "task:j1/t1")


async def test_a_named_model_leaves_the_tier_out() -> None:
    client = ScriptedClient(message("hello"))
    await Context(client).ask("hi", model="claude-haiku-5-5")
    assert client.requests[0]["model"] == "claude-haiku-5-5"
    assert client.routings[0].tier is None


async def test_output_is_validated_and_asked_for_by_schema() -> None:
    client = ScriptedClient(message(GOOD))
    ctx = Context(client)
    assert await ctx.ask("rate it", output=Rating) == Rating(mood="good", stars=5)
    schema = client.requests[0]["output_config"]["format"]["schema"]
    assert schema["additionalProperties"] is False
    assert "maximum" not in schema["properties"]["stars"]
    assert ctx.usage.to_dict() == {
        "calls": 1,
        "sends": 1,
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_usd": "0.001",
        "known_cost_usd": "0.001",
        "endpoints": {"scripted:0": 1},
    }


async def test_an_invalid_answer_is_shown_to_the_model_with_its_problem() -> None:
    client = ScriptedClient(message(SIX), message(GOOD))
    ctx = Context(client)
    assert (await ctx.ask("rate it", output=Rating)).stars == 5
    _, answer, complaint = client.requests[1]["messages"]
    assert answer["content"][0]["text"] == SIX
    assert "stars: Input should be less than or equal to 5" in complaint["content"]
    assert ctx.attempts.used == 1


async def test_an_empty_answer_is_never_sent_back_as_empty_text() -> None:
    client = ScriptedClient(message(""), message(GOOD))
    await Context(client).ask("rate it", output=Rating)
    assert client.requests[1]["messages"][1]["content"] == "(no answer)"


async def test_a_cut_answer_is_asked_for_with_more_tokens() -> None:
    client = ScriptedClient(message('{"mood": "g', stop_reason="max_tokens"), message(GOOD))
    await Context(client).ask("rate it", output=Rating, max_tokens=8)
    first, second = client.requests
    assert second == {**first, "max_tokens": 16}


async def test_endless_blanks_are_not_given_more_tokens() -> None:
    blanks = '{"mood":' + " " * 200
    client = ScriptedClient(message(blanks, stop_reason="max_tokens"), message(GOOD))
    await Context(client).ask("rate it", output=Rating, max_tokens=64)
    assert client.requests[1]["max_tokens"] == 64
    assert len(client.requests[1]["messages"]) == 3


async def test_output_invalid_keeps_attempts_and_usage() -> None:
    client = ScriptedClient(message(SIX), message(SIX), message(SIX))
    with pytest.raises(OutputInvalid, match=r"no valid Rating, asked 3 times; .*stars") as caught:
        await Context(client).ask("rate it", output=Rating)
    assert caught.value.attempts == 3
    assert caught.value.usage is not None
    assert caught.value.usage["output_tokens"] == 15
    assert caught.value.usage["cost_usd"] == "0.003"


async def test_when_more_tokens_are_refused_the_usage_is_kept() -> None:
    client = ScriptedClient(
        message("{", stop_reason="max_tokens"), InvalidRequest("max_tokens: at most 1024")
    )
    with pytest.raises(OutputInvalid, match="at most 1024") as caught:
        await Context(client).ask("rate it", output=Rating)
    assert caught.value.attempts == 1
    assert caught.value.usage is not None
    assert caught.value.usage["calls"] == 1


async def test_where_twice_the_tokens_do_not_fit_it_gets_all_that_fit() -> None:
    cut = message("{", stop_reason="max_tokens")  # of a prompt of 10 tokens
    full = ContextTooLong("too long", context_tokens=160)
    client = ScriptedClient(cut, full, message(GOOD))
    ctx = Context(client)
    assert (await ctx.ask("rate it", output=Rating, max_tokens=100)).stars == 5
    assert [request["max_tokens"] for request in client.requests] == [100, 200, 150]
    assert ctx.attempts.used == 1
    full = ContextTooLong("too long", context_tokens=110)
    client = ScriptedClient(cut, full)
    with pytest.raises(OutputInvalid, match=r"\(cut off at max_tokens=100; .*failed: too long"):
        await Context(client).ask("rate it", output=Rating, max_tokens=100)


async def test_a_full_context_is_not_asked_again() -> None:
    client = ScriptedClient(message("{", stop_reason="model_context_window_exceeded"))
    with pytest.raises(
        OutputInvalid, match="context is full; shorten the prompt, or use"
    ) as caught:
        await Context(client).ask("rate it", output=Rating)
    assert caught.value.spent == caught.value.usage
    assert caught.value.spent is not None


async def test_a_recursive_output_costs_no_call() -> None:
    client = ScriptedClient()
    with pytest.raises(AgentError, match=r"output=Tree is recursive \(Tree -> Tree\)"):
        await Context(client).ask("grow", output=Tree)
    assert client.requests == []


async def test_every_error_tells_what_its_ask_used() -> None:
    failing: list[tuple[int, list[Reply], dict[str, Any]]] = [
        (1, [message("{}"), message("no", stop_reason="refusal")], {"output": Rating}),
        (1, [message("{}"), Overloaded("busy")], {"output": Rating}),
        (0, [message("{}")], {"output": Rating}),
        (0, [message(call("none")), message(call("none"))], {"tools": [nothing], "max_turns": 2}),
        (2, [message(SIX), message("{}"), Overloaded("busy")], {"output": Rating, "tier": "auto"}),
    ]
    for attempts, replies, settings in failing:
        client = ScriptedClient(message("before"), *replies)
        ctx = Context(client, attempts=Attempts(attempts))
        await ctx.ask("something else")
        with pytest.raises(AgentCloudError) as caught:
            await ctx.ask("rate it", **settings)
        assert caught.value.spent == ctx.usage.since(1).to_dict()
        assert caught.value.spent["calls"] == sum(isinstance(r, Message) for r in replies)
        assert pickle.loads(pickle.dumps(caught.value)).spent == caught.value.spent


async def test_the_first_request_s_own_error_comes_through() -> None:
    with pytest.raises(InvalidRequest, match="bad"):
        await Context(ScriptedClient(InvalidRequest("bad"))).ask("rate it", output=Rating)


async def test_refusal_is_told_apart_and_not_repeated() -> None:
    client = ScriptedClient(message("I will not.", stop_reason="refusal"))
    ctx = Context(client)
    with pytest.raises(Refused, match="I will not") as caught:
        await ctx.ask("rate it", output=Rating)
    assert caught.value.endpoint == "scripted:0"
    assert ctx.usage.calls == 1


async def test_repairs_spend_the_task_s_attempts() -> None:
    client = ScriptedClient(message(SIX), message(SIX))
    attempts = Attempts(1)
    with pytest.raises(AttemptsExhausted, match="output Rating") as caught:
        await Context(client, attempts=attempts).ask("rate it", output=Rating, repairs=5)
    assert len(client.requests) == 2
    assert "less than or equal to 5" in (caught.value.last or "")


async def test_transport_retries_are_taken_from_the_task_s_attempts() -> None:
    client = ScriptedClient(message("a", attempts=3))
    ctx = Context(client, attempts=Attempts(3))
    await ctx.ask("hi")
    assert [routing.extra_sends for routing in client.routings] == [ctx.attempts]
    assert ctx.usage.sends == 3


async def test_unknown_cost_is_none_never_zero() -> None:
    client = ScriptedClient(message("a"), message("b", cost_usd=None))
    ctx = Context(client)
    await ctx.ask("hi")
    await ctx.ask("hi")
    assert ctx.usage.cost_usd is None
    assert ctx.usage.known_cost_usd == Decimal("0.001")


async def test_recorded_answers_replace_calls() -> None:
    recorder = MemoryRecorder()
    client = ScriptedClient(message("a"), message("b"))
    first = Context(client, recorder=recorder)
    assert [await first.ask("hi"), await first.ask("hi")] == ["a", "b"]
    again = Context(ScriptedClient(), recorder=MemoryRecorder(recorder.recorded))
    assert [await again.ask("hi"), await again.ask("hi")] == ["a", "b"]
    assert again.usage.cost_usd == Decimal("0.002")


async def test_the_deadline_shrinks_with_the_clock() -> None:
    clock = FakeClock()
    client = ScriptedClient(message("a"), message("b"), message("c"))
    ctx = Context(client, deadline_s=60, clock=clock)
    await ctx.ask("hi", deadline_s=10)
    clock.advance(55)
    await ctx.ask("hi", deadline_s=10)
    clock.advance(55)
    await ctx.ask("hi")
    assert [routing.deadline_s for routing in client.routings] == [10, 5, 0.001]


async def test_remaining_money_is_the_least_of_the_path() -> None:
    async def budgets() -> list[BudgetState]:
        zero = Decimal(0)
        return [
            BudgetState("fleet", None, Decimal(5), zero, zero),
            BudgetState("job:j", Decimal(2), Decimal("0.5"), Decimal("0.2"), Decimal("0.1")),
            BudgetState("job:other", Decimal(1), Decimal(1), zero, zero),
            BudgetState("job:j/task:j/t", Decimal(1), Decimal("0.3"), zero, zero),
        ]

    assert await Context(ScriptedClient(), budget=("job:j",), budgets=budgets).remaining_usd() == (
        Decimal("1.2")
    )
    of_task = Context(ScriptedClient(), budget=("job:j", "task:j/t"), budgets=budgets)
    assert await of_task.remaining_usd() == Decimal("0.7")
    assert await Context(ScriptedClient(), budgets=budgets).remaining_usd() is None
    assert await Context(ScriptedClient()).remaining_usd() is None


async def test_stream_yields_text_and_counts() -> None:
    client = ScriptedClient(message("a b c"))
    recorder = MemoryRecorder()
    ctx = Context(client, recorder=recorder)
    assert [piece async for piece in ctx.stream("hi", system="s")] == ["a", "b", "c"]
    assert ctx.usage.calls == 1
    replayed = Context(ScriptedClient(), recorder=MemoryRecorder(recorder.recorded))
    assert [piece async for piece in replayed.stream("hi", system="s")] == ["a b c"]


async def test_a_streamed_refusal_is_an_error_after_its_text() -> None:
    ctx = Context(ScriptedClient(message("no", stop_reason="refusal")))
    stream = ctx.stream("hi")
    assert await anext(stream) == "no"
    with pytest.raises(Refused):
        await anext(stream)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sytem": "x"}, "no parameter 'sytem'; did you mean 'system'"),
        ({"stream": True}, "no parameter 'stream'"),
        ({"output": dict}, "not a pydantic model"),
        ({"tools": [print]}, "decorate the function with @tool"),
    ],
)
async def test_wrong_use_is_one_line_and_no_call(settings: dict[str, Any], words: str) -> None:
    client = ScriptedClient()
    with pytest.raises(AgentError, match=words):
        await Context(client).ask("hi", **settings)
    assert client.requests == []


@pytest.mark.parametrize(("agents", "asks", "sent"), [
    (None, None, None), (True, None, True), (True, False, False), (None, True, True),
])  # fmt: skip
async def test_sampled_answers_come_from_the_cache_where_agent_or_ask_say_so(
    agents: bool | None, asks: bool | None, sent: bool | None
) -> None:
    client = ScriptedClient(message("hello"))

    @agent(cache=agents)
    async def greet(ctx: Context, item: Any) -> str:
        return await ctx.ask("hi", cache=asks)

    assert await run_agent(greet, Context(client), {}) == "hello"
    assert [routing.cache for routing in client.routings] == [sent]


async def test_samples_that_must_agree_are_not_one_answer_of_the_cache() -> None:
    client = ScriptedClient(*[message("yes")] * 2)
    two = Cascade(("small", "large"), agreement(2))
    assert await Context(client).ask("hi", tier=two, cache=True) == "yes"
    assert [routing.cache for routing in client.routings] == [False, False]
