"""Cascades over a scripted client: what is asked of whom, what is taken, what is told."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from agentcloud.agents import Cascade, Context, agent, agreement, logprob, run_agent, schema, tool
from agentcloud.agents.attempts import Attempts
from agentcloud.agents.defaults import Defaults
from agentcloud.cluster.contracts import Escalation
from agentcloud.cluster.errors import (
    AgentError,
    AttemptsExhausted,
    BudgetExceeded,
    ContextTooLong,
    NoEndpoint,
    OutputInvalid,
    Overloaded,
    Refused,
)
from tests.agents.fakes import ScriptedClient, message


class Rating(BaseModel):
    mood: Literal["good", "bad"]


GOOD, BAD, WRONG = '{"mood": "good"}', '{"mood": "bad"}', '{"mood": "so-so"}'
TWO = ("small", "large")


def tiers_of(client: ScriptedClient) -> list[str | None]:
    return [routing.tier for routing in client.routings]


async def test_auto_goes_up_the_fleet_s_tiers_until_an_answer_validates() -> None:
    client = ScriptedClient(message(WRONG), message("no JSON"), message(GOOD))
    ctx = Context(client)
    assert (await ctx.ask("rate it", output=Rating, tier="auto")).mood == "good"
    assert tiers_of(client) == ["small", "medium", "large"]
    assert [request["model"] for request in client.requests] == ["small", "medium", "large"]
    # Each is asked the same, and never told what another said.
    assert len({str(request["messages"]) for request in client.requests}) == 1
    first, second, third = ctx.usage.receipts
    assert first.escalated is None
    assert second.escalated is not None
    assert second.escalated.tiers == ("small",)
    assert second.escalated.spent_usd == Decimal("0.001")
    assert third.escalated is not None
    assert third.escalated.tiers == ("small", "medium")
    assert third.escalated.reasons[0] == "mood: Input should be 'good' or 'bad'"
    assert third.escalated.spent_usd == Decimal("0.002")
    # Every call is charged once, under its own receipt.
    assert ctx.usage.cost_usd == Decimal("0.003")
    assert ctx.attempts.used == 2


async def test_a_good_answer_of_the_cheapest_is_all_that_is_paid() -> None:
    client = ScriptedClient(message(GOOD), message("hello"))
    ctx = Context(client)
    await ctx.ask("rate it", output=Rating, tier="auto")
    assert await ctx.ask("hi", tier="auto") == "hello"
    assert tiers_of(client) == ["small", "small"]
    assert ctx.attempts.used == 0


async def test_an_unknown_cost_of_a_failed_attempt_stays_unknown() -> None:
    client = ScriptedClient(message(WRONG, cost_usd=None), message(GOOD))
    ctx = Context(client)
    await ctx.ask("rate it", output=Rating, tier=Cascade(TWO))
    assert ctx.usage.receipts[1].escalated == Escalation(
        ("small",), ("mood: Input should be 'good' or 'bad'",), None
    )


async def test_the_last_tier_is_asked_as_without_a_cascade_repairs_included() -> None:
    client = ScriptedClient(message(WRONG), message(WRONG), message(GOOD))
    ctx = Context(client)
    assert (await ctx.ask("rate it", output=Rating, tier=Cascade(TWO, schema))).mood == "good"
    assert tiers_of(client) == ["small", "large", "large"]
    # The note of the escalation is on one call only.
    assert [bool(receipt.escalated) for receipt in ctx.usage.receipts] == [False, True, False]
    assert "not valid" in client.requests[2]["messages"][-1]["content"]


async def test_the_note_of_the_escalation_outlives_a_prompt_that_was_too_long() -> None:
    long = ContextTooLong("too long", context_tokens=1500, prompt_tokens=2000)
    client = ScriptedClient(message(WRONG), long, message(GOOD))
    said = [("user", "rate it"), *[("assistant", "so?"), ("user", "words " * 50)] * 4]
    history = [{"role": role, "content": text} for role, text in said]
    ctx = Context(client)
    await ctx.ask(history, output=Rating, tier=Cascade(TWO))
    assert tiers_of(client) == ["small", "large", "large"]
    assert [bool(receipt.escalated) for receipt in ctx.usage.receipts] == [False, True]


async def test_a_cut_output_gets_more_tokens_at_the_next_tier() -> None:
    client = ScriptedClient(message('{"mood', stop_reason="max_tokens"), message(GOOD))
    ctx = Context(client)
    await ctx.ask("rate it", output=Rating, tier=Cascade(TWO), max_tokens=8)
    assert [request["max_tokens"] for request in client.requests] == [8, 16]
    assert ctx.usage.receipts[1].escalated is not None
    assert ctx.usage.receipts[1].escalated.reasons == ("cut off at max_tokens=8",)


async def test_a_cut_or_empty_text_is_not_taken_and_its_limit_stays() -> None:
    for bad in (message("a long", stop_reason="max_tokens"), message(" ")):
        client = ScriptedClient(bad, message("whole"))
        assert await Context(client).ask("hi", tier=Cascade(TWO), max_tokens=8) == "whole"
        assert [request["max_tokens"] for request in client.requests] == [8, 8]


async def test_a_refusal_is_not_shopped_around() -> None:
    client = ScriptedClient(message("I must not.", stop_reason="refusal"))
    with pytest.raises(Refused, match="I must not"):
        await Context(client).ask("rate it", output=Rating, tier=Cascade(TWO))
    assert tiers_of(client) == ["small"]


async def test_validators_sync_and_async_by_result_and_by_error() -> None:
    seen: list[Any] = []

    def is_good(rating: Rating) -> bool:
        seen.append(rating)
        return rating.mood == "good"

    async def never_bad(rating: Rating) -> None:
        if rating.mood == "bad":
            raise ValueError("bad again")

    client = ScriptedClient(message(BAD), message(GOOD))
    ctx = Context(client)
    await ctx.ask("rate it", output=Rating, tier=Cascade(TWO, is_good))
    assert [rating.mood for rating in seen] == ["bad", "good"]
    assert ctx.usage.receipts[1].escalated is not None
    assert ctx.usage.receipts[1].escalated.reasons == ("check is_good refuses it",)

    client = ScriptedClient(message(BAD), message(BAD))
    with pytest.raises(OutputInvalid, match="large: check never_bad: ValueError: bad again, and"):
        await Context(client).ask("rate it", output=Rating, tier=Cascade(TWO, never_bad))


async def test_an_endpoint_s_error_in_a_validator_says_nothing_of_the_answer() -> None:
    client = ScriptedClient(message("an answer"), Overloaded("busy"))
    ctx = Context(client)

    async def judge(text: str) -> bool:
        return await ctx.ask(f"is it right? {text}", tier="medium") == "yes"

    with pytest.raises(Overloaded):
        await ctx.ask("hi", tier=Cascade(TWO, judge))


async def test_agreement_takes_what_most_samples_say() -> None:
    client = ScriptedClient(message(BAD), message(GOOD), message(GOOD))
    ctx = Context(client)
    rating = await ctx.ask("rate it", output=Rating, tier=Cascade(TWO, agreement(3, 0.67)))
    assert rating.mood == "good"
    assert tiers_of(client) == ["small"] * 3
    assert [receipt.agreement for receipt in ctx.usage.receipts] == [pytest.approx(2 / 3)] * 3
    assert ctx.attempts.used == 0  # samples are no second attempts


async def test_samples_that_differ_escalate_and_all_are_charged() -> None:
    client = ScriptedClient(message(BAD), message(GOOD), message(WRONG), message(GOOD))
    ctx = Context(client)
    await ctx.ask("rate it", output=Rating, tier=Cascade(TWO, agreement(3, temperature=0.7)))
    assert [request.get("temperature") for request in client.requests] == [0.7, 0.7, 0.7, None]
    told = ctx.usage.receipts[3].escalated
    assert told is not None
    assert told.reasons == ("1 of 3 samples agree, asked for 0.67",)
    assert told.spent_usd == Decimal("0.003")


async def test_texts_agree_but_for_case_and_blanks() -> None:
    client = ScriptedClient(message("Paris."), message(" paris"), message("Lyon"))
    assert await Context(client).ask("?", tier=Cascade(TWO, agreement(3))) == "Paris."


async def test_a_threshold_of_log_probability() -> None:
    client = ScriptedClient(
        message(GOOD, mean_logprob=-0.9), message(GOOD, mean_logprob=-0.1), message(BAD)
    )
    ctx = Context(client)
    sure = Cascade(("small", "medium", "large"), logprob(at_least=-0.5))
    with pytest.raises(AgentError, match=r"no local model serves 'large'"):
        await ctx.ask("rate it", output=Rating, tier=Cascade(("large", "small"), logprob()))
    assert (await ctx.ask("rate it", output=Rating, tier=sure)).mood == "good"
    assert [(r.tier, r.mean_logprob) for r in client.routings] == [
        ("small", True),
        ("medium", True),
    ]
    assert ctx.usage.receipts[1].escalated is not None
    assert ctx.usage.receipts[1].escalated.reasons == ("mean log-probability -0.9, asked for -0.5",)


async def test_an_answer_without_its_log_probability_fails_the_check_by_name() -> None:
    client = ScriptedClient(message(GOOD), message(BAD))
    ctx = Context(client)
    await ctx.ask("rate it", output=Rating, tier=Cascade(TWO, logprob()))
    # No tier may fall back on the next one, which is asked after it.
    assert [routing.fallback for routing in client.routings] == [False, None]
    # The last tier is not asked for what nobody will look at.
    assert [routing.mean_logprob for routing in client.routings] == [True, False]
    assert ctx.usage.receipts[1].escalated is not None
    assert ctx.usage.receipts[1].escalated.reasons == ("scripted:0 tells no log-probability",)


async def test_a_tier_that_cannot_take_the_request_is_passed_over_at_no_cost() -> None:
    client = ScriptedClient(NoEndpoint("small: cannot do images"), message("a cat"))
    ctx = Context(client)
    assert await ctx.ask("?", tier=Cascade(TWO)) == "a cat"
    assert ctx.usage.receipts[0].escalated == Escalation(
        ("small",), ("cannot take it: small: cannot do images",), Decimal(0)
    )
    assert ctx.attempts.used == 0
    with pytest.raises(NoEndpoint):
        await Context(ScriptedClient(NoEndpoint("a"), NoEndpoint("b"))).ask("?", tier=Cascade(TWO))


async def test_an_escalation_spends_the_task_s_attempts_and_the_ask_s_money() -> None:
    client = ScriptedClient(message(WRONG))
    with pytest.raises(AttemptsExhausted, match="escalation to large"):
        await Context(client, attempts=Attempts(0)).ask("?", output=Rating, tier=Cascade(TWO))
    client = ScriptedClient(message(WRONG))
    with pytest.raises(BudgetExceeded):
        await Context(client).ask("?", output=Rating, tier=Cascade(TWO), max_usd=Decimal("0.001"))


async def test_a_job_s_cascade_is_auto_and_the_agent_s_default_but_no_named_tier() -> None:
    @agent(tier="medium")
    async def asks(ctx: Context, item: str) -> None:
        await ctx.ask(item)
        await ctx.ask(item, tier="auto")
        await ctx.ask(item, tier="small")
        await ctx.ask(item, model="some-model")

    client = ScriptedClient(*(message("x") for _ in range(4)))
    await run_agent(asks, Context(client, cascade=Cascade(("large",))), "hi")
    assert tiers_of(client) == ["large", "large", "small", None]


async def test_a_cascade_as_an_agent_s_default() -> None:
    client = ScriptedClient(message(WRONG), message(GOOD))
    ctx = Context(client)
    ctx.defaults = Defaults(tier=Cascade(TWO))
    await ctx.ask("rate it", output=Rating)
    assert tiers_of(client) == ["small", "large"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cascade(()), "name different tiers"),
        (lambda: Cascade(("a", "a")), "name different tiers"),
        (lambda: Cascade(("auto", "large")), "name different tiers"),
        (lambda: Cascade(TWO, "schema"), "'schema' is no check"),  # type: ignore[arg-type]
        (lambda: Cascade(TWO, [agreement(), agreement()]), "agreement is given twice"),
        (lambda: agreement(1), "two samples"),
        (lambda: agreement(3, 67), "between 0 and 1"),
        (lambda: agreement(temperature=0), "would be the same"),
        (lambda: logprob(0.5), "at most 0"),
    ],
)
def test_a_wrong_definition_is_one_line(make: Any, says: str) -> None:
    with pytest.raises(AgentError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


@tool
def lookup(word: str) -> str:
    """Look a word up."""
    return word


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tier": Cascade(("small", "huge"))}, "no tier or model 'huge'"),
        ({"tier": Cascade(("small", "tiny"))}, "tiny serves 'small' and 'tiny'"),
        ({"tier": Cascade(TWO, schema)}, "needs output="),
        ({"tier": Cascade(TWO, agreement()), "temperature": 0}, "temperature=0"),
        ({"tier": "auto", "tools": [lookup]}, "tools would run them once for each tier"),
    ],
)
async def test_an_ask_that_cannot_be_checked_so_costs_no_call(
    settings: dict[str, Any], says: str
) -> None:
    client = ScriptedClient()
    with pytest.raises(AgentError, match=says):
        await Context(client).ask("hi", **settings)
    with pytest.raises(AgentError, match="a cascade checks answers that are whole"):
        await anext(Context(client).stream("hi", tier="auto"))
    assert client.requests == []
