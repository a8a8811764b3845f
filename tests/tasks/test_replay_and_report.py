"""A task from its record alone, and a job's report: over a real ledger, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentcloud.agents.agent import Agent, Context, agent, run_agent
from agentcloud.cluster.errors import ContextTooLong, StepMismatch
from agentcloud.tasks import replay as replaying
from agentcloud.tasks.board import Board
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_wire import ContentRow, EndRow, Put, Recalled, StartRow, StepRow
from agentcloud.tasks.recorder import TaskRecorder
from agentcloud.tasks.replay import find_task
from agentcloud.tasks.report import report_html
from agentcloud.tasks.report_data import SLOWEST, report_data
from agentcloud.tasks.spec import JobSpec, JobState, OnUnknown, check_job_change, new_job_id
from agentcloud.tasks.tally import Tally
from tests.agents.fakes import ScriptedClient, message

SPEC = JobSpec(job_id="j", agent="agent.py:two", input=Path("i.jsonl"), output=Path("o.jsonl"))


class Direct:
    """The ledger without its process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def put(
        self, *, steps: Sequence[StepRow] = (), contents: Sequence[ContentRow] = ()
    ) -> None:
        self._ledger.write([Put("j", 1, steps, contents)])

    async def recall(self, task_id: str) -> Recalled:
        return self._ledger.recall("j", task_id)


@agent
async def two(ctx: Context, item: dict[str, str]) -> list[str]:
    return [await ctx.ask(item["text"]), await ctx.ask("and then?")]


@agent
async def edited(ctx: Context, item: dict[str, str]) -> str:
    return await ctx.ask(f"please: {item['text']}")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'store.db'}")


async def record(ledger: Ledger) -> None:
    ledger.begin("j", SPEC.model_dump_json(), {})
    start = StartRow("t", 0, 1, 0, json.dumps({"text": "hi"}))
    ledger.write([Put("j", 1, starts=[start])])
    recorder = TaskRecorder(Direct(ledger), "j", "t", OnUnknown.RESEND)
    ctx = Context(ScriptedClient(message("a"), message("b")), recorder=recorder)
    output = await run_agent(two, ctx, {"text": "hi"})
    ledger.write([Put("j", 1, ends=[EndRow("t", 0, "done", 1, 0, line("t", output=output))])])


def line(id_: str, *, output: object = None, error: str | None = None, took: float = 1.0) -> str:
    call = {
        "call": f"c-{id_}", "model": "haiku", "endpoint": "e", "input_tokens": 10,
        "cache_write_tokens": 0, "cache_read_tokens": 5, "output_tokens": 7,
        "cost_usd": "0.0012", "ttft_s": 0.2, "total_s": 0.9,
    }  # fmt: skip
    told = {"output": output} if error is None else {"error": error, "error_kind": "Bad<b>"}
    return json.dumps(
        {"id": id_, "status": "failed" if error else "done", **told, "attempts": 1,
         "cost_usd": "0.0012", "calls": [call], "duration_s": took,
         "started_at": "2026-11-28T12:00:00+00:00"}
    )  # fmt: skip


def agent_is(monkeypatch: pytest.MonkeyPatch, which: Agent[Any]) -> None:
    monkeypatch.setattr(replaying, "load_agent", lambda _target: which)


async def recorded_task(ledger: Ledger) -> replaying.TaskRecordFound:
    await record(ledger)
    found = find_task(ledger, "j", "t")
    assert not isinstance(found, str)
    return found


async def test_a_replay_makes_no_call_and_comes_to_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await recorded_task(ledger)
    agent_is(monkeypatch, two)
    done = await replaying._replay(SPEC, found, None)
    assert (done.output, done.error, done.is_same) == (["a", "b"], None, True)
    assert (done.steps, done.on_record) == (2, 2)
    assert [call["cost_usd"] for call in done.calls] == [Decimal("0.001")] * 2


async def test_an_agent_that_asks_something_else_is_told_what(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await recorded_task(ledger)
    agent_is(monkeypatch, edited)
    with pytest.raises(StepMismatch, match=r"not on record: model small.*please: hi") as caught:
        await replaying._replay(SPEC, found, None)
    assert "\n" not in str(caught.value)


async def test_a_conversation_that_was_summed_up_is_so_on_record(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was too long is on record too, or the replay would lack its answer."""

    @agent(long_context="summarise")
    async def chat(ctx: Context, item: dict[str, str]) -> str:
        roles = ["user", "assistant"] * 4 + ["user"]
        return await ctx.ask([{"role": role, "content": item["text"] * 200} for role in roles])

    ledger.begin("j", SPEC.model_dump_json(), {})
    start = StartRow("t", 0, 1, 0, json.dumps({"text": "hi"}))
    ledger.write([Put("j", 1, starts=[start])])
    recorder = TaskRecorder(Direct(ledger), "j", "t", OnUnknown.RESEND)
    client = ScriptedClient(ContextTooLong("too long"), message("summary"), message("answer"))
    output = await run_agent(chat, Context(client, recorder=recorder), {"text": "hi"})
    ledger.write([Put("j", 1, ends=[EndRow("t", 0, "done", 1, 0, line("t", output=output))])])
    found = find_task(ledger, "j", "t")
    assert not isinstance(found, str)
    agent_is(monkeypatch, chat)
    done = await replaying._replay(SPEC, found, None)
    assert (done.output, done.error, done.is_same) == ("answer", None, True)
    assert (done.steps, done.on_record, len(done.calls)) == (3, 3, 2)


def test_what_is_not_there_is_said(ledger: Ledger) -> None:
    assert "no job 'x'" in str(find_task(ledger, "x", "t"))
    ledger.begin("j", SPEC.model_dump_json(), {})
    assert "never started" in str(find_task(ledger, "j", "t"))


def test_a_report_sums_up_and_escapes_what_others_wrote(ledger: Ledger) -> None:
    assert report_data(ledger, "j") is None
    labels = {"team": "<script>alert(1)</script>"}
    spec = SPEC.model_copy(update={"labels": labels})
    ledger.begin("j", spec.model_dump_json(), {})
    assert "0" in report_html(report_data(ledger, "j") or pytest.fail("there is a job"))
    ends = [EndRow(f"t{n}", n, "done", 1, 0, line(f"t{n}", took=n)) for n in range(30)]
    ends.append(EndRow("<i>", 30, "failed", 1, 0, line("<i>", error="no <img src=x>", took=99)))
    ledger.write([Put("j", 1, ends=ends)])
    data = report_data(ledger, "j")
    assert data is not None
    assert (data.done, data.failed, data.errors["Bad<b>"]) == (30, 1, 1)
    sums = data.models["haiku"]
    assert (sums.calls, sums.input_tokens, sums.usd) == (31, 465, Decimal("0.0372"))
    assert [task.id for task in data.slowest] == ["<i>", *[f"t{n}" for n in range(29, 10, -1)]]
    assert len(data.slowest) == SLOWEST
    html = report_html(data)
    assert html.count("<svg") == 4
    for raw in ("<script>alert", "<img src", "<i>", "Bad<b>"):
        assert raw not in html
    assert "http://" not in html.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", ""), "it needs nothing else to be looked at"


def test_a_key_is_a_job_and_none_is_a_new_one() -> None:
    assert new_job_id("nightly") == new_job_id("nightly") != new_job_id("weekly")
    assert new_job_id() != new_job_id()


def test_a_paused_job_starts_nothing_and_goes_on() -> None:
    from agentcloud.tasks.sources import Input

    board = Board(
        iter([Input("a", 0, {}), Input("b", 1, {})]), attempts=1, finished_ids=set(), tally=Tally()
    )
    assert [each.id for each in board.take("w", 1)] == ["a"]
    board.is_paused = True
    assert board.take("w", 5) == []
    assert not board.is_finished
    board.is_paused = False
    assert [each.id for each in board.take("w", 5)] == ["b"]
    for new in (JobState.RUNNING, JobState.DONE, JobState.CANCELLED, JobState.STOPPING):
        check_job_change(JobState.PAUSED, new)
