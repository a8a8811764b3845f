"""The ledger on real SQLite and PostgreSQL: what is written is found, by the latest run alone."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from agentcloud.cluster.journal import Batch, BudgetRow, LeaseEnd, LeaseState, PaidLease
from agentcloud.cluster.store import open_store
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_wire import PAGE, EndRow, Put, StartRow, StepRow
from agentcloud.tasks.step_ids import asked, step_id, task_prefix


def step_of(task: str, text: str, lease: str | None = None, usd: str | None = None) -> StepRow:
    what = asked("model", "small", {"messages": [{"role": "user", "content": text}]})
    id_ = step_id(task_prefix("j", task), what.key, 0)
    return StepRow(id_, task, "model", "small", what.settings, what.history, b"{}", lease, usd)


def lease(lease_id: str, step: StepRow, usd: str = "0.5") -> PaidLease:
    budget = ("job:j",)
    return PaidLease(
        lease_id, f"c-{lease_id}", 1, "h", "main/haiku", budget, Decimal(usd), 60.0, step.step
    )


@pytest.fixture
def ledger(database: str) -> Ledger:
    return Ledger(database)


def test_steps_are_a_task_s_and_told_twice_are_there_once(ledger: Ledger) -> None:
    epoch = ledger.begin("j", "{}", {})
    one, two, other = step_of("t", "one"), step_of("t", "two"), step_of("u", "one")
    contents = asked("model", "small", {"messages": [{"role": "user", "content": "one"}]}).contents
    ledger.write([Put("j", epoch, [one, other], contents), Put("j", epoch, [two])])
    ledger.write([Put("j", epoch, [one._replace(answer=b"later")], contents)], True)
    assert ledger.recall("j", "t").answers == {one.step: b"{}", two.step: b"{}"}
    assert ledger.recall("j", "u").answers == {other.step: b"{}"}
    assert ledger.recall("k", "t").answers == {}
    ledger.close()


def test_what_an_earlier_run_still_writes_is_left_out(ledger: Ledger) -> None:
    assert ledger.begin("j", "{}", {"cwd": "x"}) == 1
    assert ledger.begin("other", "{}", {}) == 1
    assert ledger.begin("j", "{}", {}) == 2
    stale, fresh = Put("j", 1, [step_of("t", "old")]), Put("j", 2, [step_of("t", "new")])
    elsewhere = Put("other", 1, ends=[EndRow("t", 0, "done", 1, 0, "{}")])
    ledger.write([stale, fresh, elsewhere])
    assert [each.is_stale for each in (stale, fresh, elsewhere)] == [True, False, False]
    assert list(ledger.recall("j", "t").answers) == [fresh.steps[0].step]
    assert len(ledger.ended("other")) == 1
    ledger.end("j", 1, "failed", {}, "9")
    job = ledger.job("j")
    assert job is not None
    assert (job.epoch, job.state, job.origin) == (2, "running", {"cwd": "x"})
    ledger.close()


def test_tasks_page_by_page(ledger: Ledger) -> None:
    epoch = ledger.begin("j", "{}", {})
    count = PAGE + 10
    starts = [StartRow(f"t{n}", n, 1, 0, f'{{"n": {n}}}') for n in range(count)]
    ends = [EndRow(f"t{n}", n, "done", 1, 2, f'{{"id": "t{n}"}}') for n in range(0, count, 2)]
    ledger.write([Put("j", epoch, starts=starts, ends=ends)])
    found, after = [], ""
    while page := ledger.ended("j", after):
        found.extend(page)
        after = page[-1].task_id
    assert sorted(found) == sorted(ends)
    begun = ledger.begun("j")
    assert len(begun) == count // 2
    assert ledger.task("j", "t3") == starts[3]
    assert ledger.task("j", "t4") == starts[4]._replace(extra_used=2)
    assert ledger.task("j", "no") is None
    ledger.close()


def test_failed_tasks_are_done_again_on_their_record_unless_it_is_what_failed_them(
    ledger: Ledger,
) -> None:
    epoch = ledger.begin("j", "{}", {})
    kinds = {"bug": "ValueError", "model": "OutputInvalid"}
    steps = [step_of(task, "hi") for task in kinds]
    starts = [StartRow(task, 0, 3, 5, "{}") for task in [*kinds, "done"]]
    ends = [
        EndRow(task, 0, "failed", 3, 5, json.dumps({"error_kind": kind}))
        for task, kind in kinds.items()
    ]
    ends.append(EndRow("done", 0, "done", 1, 0, "{}"))
    ledger.write([Put("j", epoch, steps, starts=starts, ends=ends)])
    assert ledger.forget_failed("j") == 2
    assert [row.task_id for row in ledger.ended("j")] == ["done"]
    begun = {row.task_id: (row.attempts, row.extra_used) for row in ledger.begun("j")}
    assert begun == {"bug": (0, 0), "model": (0, 0)}
    assert len(ledger.recall("j", "bug").answers) == 1
    assert ledger.recall("j", "model").answers == {}
    ledger.close()


def test_a_paused_job_is_known_as_paused_until_its_next_run(ledger: Ledger) -> None:
    epoch = ledger.begin("j", "{}", {})
    ledger.mark("j", epoch, "paused")
    assert [job.state for job in ledger.jobs()] == ["paused"]
    later = ledger.begin("j", "{}", {})
    ledger.mark("j", epoch, "paused")  # of a run that is over
    assert [(job.state, job.epoch) for job in ledger.jobs()] == [("running", later)]
    ledger.close()


def test_paid_calls_without_a_recorded_answer_and_answers_without_a_settlement(
    database: str, ledger: Ledger
) -> None:
    epoch = ledger.begin("j", "{}", {})
    asks = {name: step_of("t", name) for name in ("lost", "settled", "failed", "recorded", "local")}
    store = open_store(database, "fleet")
    store.write(
        Batch(
            [lease(name, step) for name, step in asks.items() if name != "local"],
            [
                LeaseEnd("settled", LeaseState.SETTLED, Decimal("0.1")),
                LeaseEnd("failed", LeaseState.FAILED, Decimal(0)),
            ],
        )
    )
    recorded = [
        asks["recorded"]._replace(lease_id="recorded", lease_usd="0.25"),
        asks["settled"]._replace(lease_id="settled", lease_usd="0.1"),
        asks["local"],
    ]
    ledger.write([Put("j", epoch, recorded)])
    found = ledger.recall("j", "t")
    # A failed send was no answer; what is recorded is known, whatever its lease says.
    assert found.sent - found.answers.keys() == {asks["lost"].step}
    assert found.owed == (("recorded", Decimal("0.25")),)
    assert ledger.resent("j") == 0
    store.write(Batch([lease("lost again", asks["lost"]), lease("lost thrice", asks["lost"])]))
    assert (ledger.resent("j"), ledger.resent("jj")) == (2, 0)
    store.close()
    ledger.close()


def test_money_of_fleets_that_are_gone_counts_once(database: str, ledger: Ledger) -> None:
    epoch = ledger.begin("j", "{}", {})
    gone = open_store(database, "gone")
    gone.write(
        Batch(
            [lease("open", step_of("t", "open"), "0.5")],
            budgets=[
                BudgetRow(("job:j",), None, Decimal("1.25"), Decimal("0.25")),
                BudgetRow(("job:j", "task:j/t"), None, Decimal("1.25"), Decimal("0.25")),
                BudgetRow(("job:jj",), None, Decimal(7), Decimal(7)),
            ],
        )
    )
    now = open_store(database, "now")
    now.write(Batch(budgets=[BudgetRow(("job:j",), None, Decimal(3), Decimal(0))]))
    assert ledger.spent_before("j", "now") == Decimal(2)
    assert ledger.spent_before("j", "now") == Decimal(2), "found once, kept with the job"
    ledger.end("j", epoch, "done", {}, "5")
    assert ledger.spent_before("j", "later") == Decimal(8), "a fleet that ended without a word"
    for each in (gone, now):
        each.close()
    ledger.close()
