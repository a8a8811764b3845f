"""Conversations that are too long: summed up, or truncated where no summary can be had."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from agentcloud.agents import Context, agent, as_tool, run_agent, tool
from agentcloud.agents.attempts import Attempts
from agentcloud.agents.history import estimate_tokens
from agentcloud.agents.summary import summary_prompt, with_summary, without_summary
from agentcloud.cluster.errors import (
    AgentError,
    AttemptsExhausted,
    BudgetExceeded,
    ContextTooLong,
    Refused,
)
from tests.agents.fakes import MemoryRecorder, Reply, ScriptedClient, call, message

SUMMARY = "Pages 1 and 2 say words."


class Total(BaseModel):
    total: int


@tool
def read(page: int) -> str:
    """Read a page."""
    return f"page {page}: " + "words " * 100


def too_long(prompt_tokens: int | None = 1500) -> ContextTooLong:
    return ContextTooLong("too long", context_tokens=1500, prompt_tokens=prompt_tokens)


def reads(*pages: int) -> list[Reply]:
    return [message(call("read", f"t{page}", page=page)) for page in pages]


async def ask(ctx: Context, prompt: Any = "read all", **settings: Any) -> Any:
    settings = {"long_context": "summarise", "max_tokens": 500, "tools": [read], **settings}
    return await ctx.ask(prompt, **settings)


def check(messages: list[dict[str, Any]]) -> None:
    """See that roles alternate and that no call is without its result."""
    assert messages[0]["role"] == "user"
    assert all(one["role"] != other["role"] for one, other in pairwise(messages))
    blocks = [block for said in messages for block in said["content"] if isinstance(block, dict)]
    calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
    assert calls == [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]


def texts(said: dict[str, Any]) -> list[str]:
    return [block["text"] for block in said["content"]]


async def test_a_summary_takes_the_place_of_the_oldest_turns() -> None:
    client = ScriptedClient(*reads(1, 2, 3), too_long(), message(SUMMARY), message("done"))
    ctx = Context(client, budget=("job:j",))
    assert await ask(ctx, system="be kind", tier="large") == "done"
    *_, whole, asked, shorter = client.requests
    assert set(asked) == {"model", "max_tokens", "messages"}
    assert asked["model"] == whole["model"] == "large"
    assert asked["max_tokens"] <= 1500 / 8
    prompt = asked["messages"][0]["content"]
    assert "<task>\nuser: read all\n</task>" in prompt
    assert '[call of read: {"page": 1}]' in prompt
    assert "[result: page 2: words" in prompt
    assert "page 3" not in prompt
    assert client.routings[-2] == client.routings[-1]
    kept = shorter["messages"]
    check(kept)
    task, summary = texts(kept[0])
    assert (task, SUMMARY in summary) == ("read all", True)
    assert kept[1:] == whole["messages"][-2:]
    assert (ctx.attempts.used, ctx.usage.calls) == (1, 5)


async def test_a_later_summary_takes_in_the_earlier_one() -> None:
    client = ScriptedClient(
        *(*reads(1, 2, 3), too_long(), message(SUMMARY)),
        *(*reads(4, 5), too_long(), message("All five say words."), message("done")),
    )
    ctx = Context(client)
    assert await ask(ctx) == "done"
    prompt = client.requests[-2]["messages"][0]["content"]
    assert f"<summary_so_far>\n{SUMMARY}\n</summary_so_far>" in prompt
    assert prompt.count(SUMMARY) == 1
    assert "page 1: " not in prompt
    kept = client.requests[-1]["messages"]
    check(kept)
    task, summary = texts(kept[0])
    assert (task, "All five" in summary, SUMMARY in summary) == ("read all", True, False)
    assert ctx.attempts.used == 2


async def test_it_is_shortened_until_it_fits() -> None:
    blind = ContextTooLong("too long")
    client = ScriptedClient(
        *reads(*range(9)), blind, message("one"), blind, message("two"), message("done")
    )
    ctx = Context(client)
    assert await ask(ctx) == "done"
    lengths = [len(request["messages"]) for request in client.requests[9:]]
    assert lengths == [19, 1, 7, 1, 3]
    assert ctx.attempts.used == 2
    client = ScriptedClient(*reads(1, 2, 3), blind, message("one"), blind)
    with pytest.raises(ContextTooLong):
        await ask(Context(client))
    client = ScriptedClient(*reads(1, 2, 3), blind)
    with pytest.raises(AttemptsExhausted, match="for a shorter conversation"):
        await ask(Context(client, attempts=Attempts(0)))


@pytest.mark.parametrize(
    "answer",
    [
        message("Pages 1 a", stop_reason="max_tokens"),
        message("no", stop_reason="refusal"),
        message(""),
        too_long(),
        Refused("no"),
    ],
    ids=["cut", "refused", "empty", "too long", "refused by the API"],
)
async def test_where_no_summary_can_be_had_the_turns_are_dropped(answer: Reply) -> None:
    client = ScriptedClient(*reads(1, 2, 3), too_long(), answer, message("done"))
    ctx = Context(client)
    with capture_logs() as logs:
        assert await ask(ctx) == "done"
    assert [log["event"] for log in logs] == ["no summary: oldest turns dropped"]
    kept = client.requests[-1]["messages"]
    check(kept)
    assert kept[0] == {"role": "user", "content": "read all"}
    assert ctx.attempts.used == 1


async def test_an_earlier_summary_stays_where_a_later_one_cannot_be_had() -> None:
    client = ScriptedClient(
        *(*reads(1, 2, 3), too_long(), message(SUMMARY)),
        *(*reads(4, 5), too_long(), message("", stop_reason="refusal"), message("done")),
    )
    assert await ask(Context(client)) == "done"
    kept = client.requests[-1]["messages"]
    check(kept)
    assert SUMMARY in texts(kept[0])[-1]


async def test_other_errors_of_the_summary_come_through() -> None:
    used_up = BudgetExceeded("job:j", used_usd=Decimal(1), limit_usd=Decimal(1))
    client = ScriptedClient(*reads(1, 2, 3), too_long(), used_up)
    with pytest.raises(BudgetExceeded):
        await ask(Context(client))


@pytest.mark.parametrize("long_context", ["truncate", "summarise"])
@pytest.mark.parametrize("summary", [message(SUMMARY), too_long()], ids=["had", "not had"])
async def test_on_record_it_is_shortened_as_it_was(long_context: str, summary: Reply) -> None:
    summaries = [summary] if long_context == "summarise" else []
    client = ScriptedClient(*reads(1, 2, 3), too_long(), *summaries, message("done"))
    recorder = MemoryRecorder()
    assert await ask(Context(client, recorder=recorder), long_context=long_context) == "done"
    # No reply is left: neither the answers nor the refusals are asked for again.
    again = Context(ScriptedClient(), recorder=MemoryRecorder(recorder.recorded))
    assert await ask(again, long_context=long_context) == "done"


async def test_what_cannot_be_shortened_is_not_on_record_as_too_long() -> None:
    recorder = MemoryRecorder()
    with pytest.raises(ContextTooLong):
        await ask(Context(ScriptedClient(too_long()), recorder=recorder))
    # With a larger context, the job goes on where it failed.
    again = Context(ScriptedClient(message("ok")), recorder=MemoryRecorder(recorder.recorded))
    assert await ask(again) == "ok"


async def test_outputs_are_fitted_too() -> None:
    chat = [
        {"role": role, "content": f"{number}: " + "words " * 100}
        for number, role in enumerate(["user", "assistant"] * 3 + ["user"])
    ]
    client = ScriptedClient(too_long(), message(SUMMARY), message('{"total": 3}'))
    settings: dict[str, Any] = {"output": Total, "tools": []}
    assert await ask(Context(client), chat, **settings) == Total(total=3)
    assert SUMMARY in texts(client.requests[-1]["messages"][0])[-1]
    client = ScriptedClient(
        *reads(1, 2, 3), message("3"), too_long(), message(SUMMARY), message('{"total": 3}')
    )
    assert await ask(Context(client), output=Total) == Total(total=3)
    check(client.requests[-1]["messages"])


async def test_agents_say_it_for_their_asks_and_not_for_those_of_others() -> None:
    @agent(max_tokens=500, tools=[read])
    async def inner(ctx: Context, item: str) -> str:
        """Read."""
        return await ctx.ask(item)

    @agent(max_tokens=500, tools=[as_tool(inner)], long_context="summarise")
    async def outer(ctx: Context, item: str) -> str:
        return await ctx.ask(item)

    @agent(max_tokens=500, tools=[read], long_context="summarise")
    async def plain(ctx: Context, item: str) -> str:
        return await ctx.ask(item)

    long = [*reads(1, 2, 3), too_long()]
    client = ScriptedClient(*long, message(SUMMARY), message("done"))
    assert await run_agent(plain, Context(client), "go") == "done"
    client = ScriptedClient(message(call("inner", item="go")), *long, message("ok"), message("end"))
    assert await run_agent(outer, Context(client), "go") == "end"


async def test_a_wrong_value_is_told_before_any_call() -> None:
    wrong: Any = "summarize"
    words = "long_context='summarize' is unknown; write 'truncate' or 'summarise'"
    with pytest.raises(AgentError, match=words):
        agent(long_context=wrong)
    with pytest.raises(AgentError, match=words):
        await ask(Context(ScriptedClient()), long_context=wrong)


def test_the_prompt_is_cut_to_its_room() -> None:
    task = [{"role": "user", "content": "t" * 50_000}]
    turns = [
        {"role": "assistant", "content": [{"type": "text", "text": "begin " + "é" * 50_000}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "end"}]},
    ]
    for room_tokens in (200, 1000, 20_000):
        prompt = summary_prompt(task, "s" * 9000, turns, room_tokens=room_tokens, words=50)
        assert estimate_tokens(prompt) <= room_tokens * 1.1
    assert "assistant: begin é" in prompt
    assert "[image]\nend\n</conversation>" in prompt
    assert prompt.endswith("in at most 50 words.")


def test_a_summary_is_found_again() -> None:
    for content in ("task", [{"type": "text", "text": "task"}], []):
        said = {"role": "user", "content": content}
        assert without_summary(said) == (said, None)
        blocks = [{"type": "text", "text": "task"}] if content else []
        found = without_summary(with_summary(said, "sum"))
        assert found == ({"role": "user", "content": blocks}, "sum")
