"""Steps by content and occurrence, over a ledger in memory: what is reused, sent again, refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.agents.agent import Context
from agentcloud.agents.approval import APPROVAL, Approval
from agentcloud.cluster.errors import AgentError, AnswerUnknown, Parked
from agentcloud.tasks.ledger_wire import ContentRow, Recalled, StepRow
from agentcloud.tasks.recorder import TaskRecorder
from agentcloud.tasks.spec import OnUnknown
from agentcloud.tasks.step_ids import asked, step_id, task_prefix
from tests.agents.fakes import ScriptedClient, message


class MemoryLedger:
    """What a ledger keeps of one task."""

    def __init__(self) -> None:
        self.rows: dict[str, StepRow] = {}
        self.contents: dict[str, ContentRow] = {}
        self.sent: set[str] = set()

    async def put(
        self, *, steps: Sequence[StepRow] = (), contents: Sequence[ContentRow] = ()
    ) -> None:
        self.rows.update((row.step, row) for row in steps)
        self.contents.update((row.hash, row) for row in contents)

    async def recall(self, task_id: str) -> Recalled:
        answers = {step: row.answer for step, row in self.rows.items()}
        return Recalled(answers, frozenset(self.sent))


async def recorder(
    ledger: MemoryLedger, *, was_lost: bool = True, on_unknown: OnUnknown = OnUnknown.RESEND
) -> TaskRecorder:
    made = TaskRecorder(ledger, "j", "t", on_unknown)
    await made.recall(was_lost=was_lost)
    return made


async def test_a_task_that_is_started_again_pays_only_for_what_is_new() -> None:
    ledger = MemoryLedger()
    first = Context(
        ScriptedClient(message("a"), message("b"), message("c")), recorder=await recorder(ledger)
    )
    answers = await asyncio.gather(first.ask("same"), first.ask("same"), first.ask("other"))
    assert "".join(answers) == "abc"
    client = ScriptedClient(message("new"))
    record = await recorder(ledger)
    again = Context(client, recorder=record)
    # Another order, and one edited request: it alone is asked.
    assert await again.ask("other") == "c"
    assert await again.ask("edited") == "new"
    assert {await again.ask("same"), await again.ask("same")} == {"a", "b"}
    assert len(client.requests) == 1
    assert (record.reused, record.resent) == (3, 0)
    assert again.usage.cost_usd == Decimal("0.004"), "what was paid is the task's, whoever paid"
    assert [receipt.cached for receipt in again.usage.receipts] == [True, False, True, True]


async def test_every_call_says_which_step_it_is() -> None:
    ledger = MemoryLedger()
    client = ScriptedClient(message("a"), message("b"))
    ctx = Context(client, recorder=await recorder(ledger))
    await ctx.ask("one")
    await ctx.ask("two")
    assert [routing.step for routing in client.routings] == list(ledger.rows)


async def test_a_call_whose_answer_was_lost_is_sent_again_and_counted_or_refused() -> None:
    ledger = MemoryLedger()
    client = ScriptedClient(message("a"))
    await Context(client, recorder=await recorder(ledger)).ask("hi")
    ledger.sent.update(ledger.rows)
    ledger.rows.clear()
    record = await recorder(ledger)
    assert await Context(ScriptedClient(message("again")), recorder=record).ask("hi") == "again"
    assert record.resent == 1
    ledger.rows.clear()
    refusing = Context(
        ScriptedClient(message("never")), recorder=await recorder(ledger, on_unknown=OnUnknown.FAIL)
    )
    for _ in range(2):  # asking once more is no way around it
        with pytest.raises(AnswerUnknown, match=r"its answer is lost.*--on-unknown resend"):
            await refusing.ask("hi")
    # Where no worker died, every call was answered or failed: nothing is unknown.
    calm = await recorder(ledger, was_lost=False, on_unknown=OnUnknown.FAIL)
    assert await Context(ScriptedClient(message("b")), recorder=calm).ask("hi") == "b"


async def test_a_step_that_failed_leaves_its_place_to_the_next() -> None:
    ledger = MemoryLedger()
    calls = []

    def flaky(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            raise ValueError("not yet")
        return number * 10

    ctx = Context(ScriptedClient(), recorder=await recorder(ledger))
    with pytest.raises(ValueError, match="not yet"):
        await ctx.step(flaky, 4)
    assert await ctx.step(flaky, 4) == 40
    again = Context(ScriptedClient(), recorder=await recorder(ledger))
    assert await again.step(flaky, 4) == 40
    assert calls == [4, 4]


async def test_a_step_gives_the_type_that_it_promises_and_refuses_what_is_no_json() -> None:
    ledger = MemoryLedger()

    async def price(name: str) -> Decimal:
        return Decimal("1.25")

    for _ in range(2):
        ctx = Context(ScriptedClient(), recorder=await recorder(ledger))
        assert await ctx.step(price, "tea") == Decimal("1.25")
    with pytest.raises(AgentError, match="say name="):
        await ctx.step(lambda: 1)
    with pytest.raises(AgentError, match="which is no JSON"):
        await ctx.step(object, name="object")


async def test_a_person_is_asked_once_and_the_answer_is_what_the_task_goes_on_with() -> None:
    ledger = MemoryLedger()

    async def task(client: ScriptedClient) -> Approval:
        ctx = Context(client, recorder=await recorder(ledger))
        await ctx.ask("draft")
        try:
            return await ctx.approve("Send it?", details={"to": "all"})
        except Exception:
            raise AssertionError("an agent's own handling must not take it") from None

    with pytest.raises(Parked) as parked:
        await task(ScriptedClient(message("a")))
    assert (parked.value.question, parked.value.details) == ("Send it?", {"to": "all"})
    answer = APPROVAL.dump_json(Approval(False, "no", "ann"))
    row = StepRow(parked.value.step, "t", "approval", "approve", None, None, answer)
    await ledger.put(steps=[row])
    assert await task(ScriptedClient()) == Approval(False, "no", "ann")
    with pytest.raises(AgentError, match="outside of a job"):
        await Context(ScriptedClient()).approve("Anybody there?")


async def test_a_conversation_of_n_turns_takes_n_messages() -> None:
    ledger = MemoryLedger()
    ctx = Context(
        ScriptedClient(*[message(f"answer {n}") for n in range(40)]),
        recorder=await recorder(ledger),
    )
    history: list[dict[str, Any]] = []
    for turn in range(40):
        history.append({"role": "user", "content": f"turn {turn}"})
        answer = await ctx.ask(history, system="x" * 1000)
        history.append({"role": "assistant", "content": answer})
    # 40 questions, 39 answers, and the settings once.
    assert len(ledger.contents) == 80
    last = list(ledger.rows.values())[-1].history
    told = []
    while last is not None:
        told.append(json.loads(ledger.contents[last].body))
        last = ledger.contents[last].parent
    assert told[::-1] == history[:-1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=4), json_values, max_size=3), max_size=4), json_values
)
def test_the_key_is_of_the_whole_content_and_of_nothing_else(
    messages: list[Any], settings: Any
) -> None:
    def key(messages: list[Any], settings: Any) -> str:
        return asked("model", "m", {"messages": messages, "settings": settings}).key

    ours = key(messages, settings)
    assert ours == key(json.loads(json.dumps(messages)), json.loads(json.dumps(settings)))
    assert ours != key([*messages, {"role": "user"}], settings)
    assert ours != key(messages, [settings])
    prefix = task_prefix("j", "t")
    ids = {step_id(prefix, ours, n) for n in range(3)} | {step_id(task_prefix("j", "u"), ours, 0)}
    assert len(ids) == 4
    assert all(prefix <= each < prefix + "g" for each in ids if each.startswith(prefix))
