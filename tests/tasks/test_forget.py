"""Jobs are forgotten on real SQLite and PostgreSQL: wholly, and nothing of the others with them."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text
from typer.testing import CliRunner

from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.journal import Batch, BudgetRow, LeaseEnd, LeaseState, PaidLease
from agentcloud.cluster.store import open_store
from agentcloud.tasks import ledger_forget
from agentcloud.tasks.cli import app
from agentcloud.tasks.forget import forget_jobs
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_wire import (
    ContentRow,
    EndRow,
    Forgotten,
    Put,
    Recalled,
    StartRow,
    StepRow,
)
from agentcloud.tasks.step_ids import asked, step_id, task_prefix


class World:
    """A ledger that jobs write to, and what is to be in it."""

    def __init__(self, url: str) -> None:
        self.ledger = Ledger(url)
        self.epochs: dict[str, int] = {}
        self.tasks: dict[str, set[str]] = {}

    def step(self, job: str, task: str, texts: list[str], system: str = "sort") -> StepRow:
        """Record an answer to a conversation of these messages."""
        if job not in self.epochs:
            self.epochs[job] = self.ledger.begin(job, '{"agent": "a.py:a"}', {})
        row, contents = made(job, task, texts, system)
        start = StartRow(task, 0, 1, 0, '{"text": "ü"}')
        put = Put(job, self.epochs[job], [row], contents, starts=[start])
        self.ledger.write([put])
        assert not put.is_stale
        self.tasks.setdefault(job, set()).add(task)
        return row

    def end(self, job: str, state: str = "done") -> None:
        self.ledger.end(job, self.epochs[job], state, {}, "0")

    def recalled(self, *without: str) -> dict[tuple[str, str], Recalled]:
        return {
            (job, task): self.ledger.recall(job, task)
            for job, tasks in self.tasks.items()
            for task in sorted(tasks)
            if job not in without
        }

    def forget(self, job: str, *, force: bool = False) -> list[Forgotten]:
        pages = [self.ledger.forget(job, force=force)]
        while not pages[-1].is_over:
            pages.append(self.ledger.forget(job, force=force))
        return pages

    def rows(self, query: str) -> list[Any]:
        with self.ledger._engine.connect() as connection:
            return list(connection.execute(text(query)).all())

    def check_contents(self) -> None:
        """Every content that a step refers to is there, and no other."""
        parents = dict(self.rows("SELECT hash, parent FROM contents"))
        wanted = set()
        for settings, history in self.rows("SELECT settings, history FROM steps"):
            wanted.add(settings)
            while history is not None:
                wanted.add(history)
                history = parents[history]
        assert parents.keys() == wanted


def made(job: str, task: str, texts: list[str], system: str) -> tuple[StepRow, list[ContentRow]]:
    messages = [{"role": "user", "content": each} for each in texts]
    what = asked("model", "small", {"system": system, "messages": messages})
    id_ = step_id(task_prefix(job, task), what.key, 0)
    answer = f"{job} {task} {texts}".encode()
    row = StepRow(id_, task, "model", "small", what.settings, what.history, answer)
    return row, list(what.contents)


@pytest.fixture
def world(database: str) -> Iterator[World]:
    there = World(database)
    with contextlib.closing(there.ledger):
        yield there


@pytest.mark.parametrize("seed", range(6))
def test_what_other_jobs_recall_is_unchanged_and_nothing_else_is_left(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_forget, "ROWS", 3)
    rng = random.Random(seed)
    jobs = [f"j{n}" for n in range(4)]
    for job in jobs:
        for _ in range(rng.randint(1, 12)):
            texts = rng.choices("abc", k=rng.randint(0, 4))
            world.step(job, rng.choice("tuvw"), texts, rng.choice(["sort", "judge"]))
        world.end(job, rng.choice(["done", "failed", "stopped", "cancelled"]))
    rng.shuffle(jobs)
    for number, job in enumerate(jobs):
        others = world.recalled(*jobs[: number + 1])
        steps = len(world.rows(f"SELECT step FROM steps WHERE job_id = '{job}'"))
        while not world.ledger.forget(job).is_over:
            world.check_contents()
            assert world.ledger.job(job) is not None, "its row is the last to go"
        assert steps > 0
        assert world.ledger.job(job) is None
        assert world.recalled(*jobs[: number + 1]) == others
        world.check_contents()
    for table in ("jobs", "tasks", "steps", "contents"):
        assert world.rows(f"SELECT * FROM {table}") == []


def test_counts_and_bytes_are_those_of_what_goes(world: World) -> None:
    row = world.step("j", "t", ["mine", "ours"])
    other = world.step("k", "t", ["mine"])
    world.ledger.write([Put("j", 1, ends=[EndRow("t", 0, "done", 1, 0, '{"id": "t"}')])])
    world.end("j")
    assert world.ledger.held("j") == Forgotten(1, 1)
    assert world.ledger.held("no") is None
    pages = world.forget("j")
    (left,) = (row for row in made("j", "t", ["mine", "ours"], "sort")[1] if b"ours" in row.body)
    # The item has one letter of two bytes.
    texts = len('{"text": "ü"}'.encode()) + len('{"id": "t"}')
    assert pages == [
        Forgotten(0, 1, len(row.answer) + len(left.body)),
        Forgotten(1, 0, texts, is_over=True),
    ]
    assert world.ledger.recall("k", "t").answers == {other.step: other.answer}
    assert world.ledger.forget("j") == Forgotten(is_over=True)


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_job_that_has_not_ended_goes_only_by_force_and_then_writes_no_more(
    world: World, state: str
) -> None:
    world.step("j", "t", ["a"])
    world.ledger.mark("j", 1, state)
    with pytest.raises(ConfigError, match=rf"job j is {state}, or was cut off"):
        world.ledger.forget("j")
    assert world.rows("SELECT state, epoch FROM jobs") == [(state, 1)]
    world.ledger.forget("j", force=True)
    late = Put("j", 1, [made("j", "t", ["late"], "sort")[0]])
    world.ledger.write([late])
    assert late.is_stale
    world.forget("j")
    assert world.rows("SELECT * FROM steps") == []
    assert world.ledger.begin("j", "{}", {}) == 1, "its key is free again"


def test_a_job_that_is_resumed_meanwhile_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_forget, "ROWS", 1)
    for task in "tu":
        world.step("j", task, ["a"])
    world.end("j", "stopped")
    assert not world.ledger.forget("j").is_over
    assert world.ledger.begin("j", '{"agent": "a.py:a"}', {}) == 2
    with pytest.raises(ConfigError, match="job j is running"):
        world.ledger.forget("j")
    assert len(world.rows("SELECT * FROM steps")) == 1


def test_ended_leases_go_with_their_tasks_and_money_stays(database: str, world: World) -> None:
    rows = {name: world.step("j", "t", [name]) for name in ("settled", "failed", "unknown", "open")}
    rows["other"] = world.step("k", "t", ["settled"])
    store = open_store(database, "fleet")
    granted = [
        PaidLease(
            name, f"c-{name}", 1, "h", "main/haiku", ("job:j",), Decimal("0.5"), 60.0, row.step
        )
        for name, row in rows.items()
    ]
    ends = [
        LeaseEnd("settled", LeaseState.SETTLED, Decimal("0.1")),
        LeaseEnd("other", LeaseState.SETTLED, Decimal("0.1")),
        LeaseEnd("failed", LeaseState.FAILED, Decimal(0)),
        LeaseEnd("unknown", LeaseState.UNKNOWN, None),
    ]
    budget = BudgetRow(("job:j",), None, Decimal("0.1"), Decimal("0.5"))
    store.write(Batch(granted, ends, [budget]))
    before = store.load()
    world.end("j")
    world.forget("j")
    assert store.load().budgets == before.budgets
    left = {each.row.lease_id for each in store.load().leases}
    assert left == {each.row.lease_id for each in before.leases} == {"unknown", "open"}
    assert world.ledger.recall("j", "t").sent == {rows["unknown"].step, rows["open"].step}
    assert world.ledger.recall("k", "t").sent == {rows["other"].step}
    store.close()


def test_a_job_that_writes_meanwhile_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refers to contents that are just being deleted, again and again."""
    monkeypatch.setattr(ledger_forget, "ROWS", 2)
    count = 60
    for number in range(count):
        world.step("old", f"t{number}", [f"shared {number}", "x"])
    world.end("old")
    world.step("new", "first", ["a"])
    writer = threading.Thread(
        target=lambda: [
            world.step("new", f"t{number}", [f"shared {number}", "x"]) for number in range(count)
        ]
    )
    writer.start()
    world.forget("old")
    writer.join()
    world.check_contents()
    assert len(world.rows("SELECT * FROM steps")) == count + 1


@pytest.fixture
def here(world: World, database: str, tmp_path: Path) -> Path:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        yaml.safe_dump(
            {
                "store": database,
                "accounts": {"a": {"base_url": "http://127.0.0.1:9", "api_key_env": "NO_KEY"}},
                "hosted": {"claude-haiku-5-5": {"account": "a", "tier": "large"}},
            }
        )
    )
    return fleet


def test_by_age_only_what_ended_goes(world: World, here: Path) -> None:
    for job in ("old", "young", "running"):
        world.step(job, "t", ["a"])
    for job in ("old", "young"):
        world.end(job)
    with world.ledger._engine.begin() as connection:
        connection.execute(
            text("UPDATE jobs SET ended_unix_s = ended_unix_s - 90000 WHERE job_id = 'old'")
        )
    waits: list[float] = []
    done = forget_jobs([], address=None, fleet=here, older_than_s=86400.0, sleep=waits.append)
    assert [(each.job.job_id, each.counts.steps) for each in done] == [("old", 1)]
    assert len(waits) == 1, "others have their turn between its two pages"
    assert {job.job_id for job in world.ledger.jobs()} == {"young", "running"}
    assert forget_jobs([], address=None, fleet=here, older_than_s=86400.0) == []


def test_one_that_has_not_ended_stops_the_command_before_anything_goes(
    world: World, here: Path
) -> None:
    for job in ("done", "running"):
        world.step(job, "t", ["a"])
    world.end("done")
    with pytest.raises(ConfigError, match=r"job running is running, or was cut off; .*--force"):
        forget_jobs(["done", "running"], address=None, fleet=here)
    assert len(world.ledger.jobs()) == 2
    forget_jobs(["done", "running"], address=None, fleet=here, force=True)
    assert world.ledger.jobs() == []


def test_the_command(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for job in ("a", "b"):
        world.step(job, "t", ["a"])
        world.end(job)

    def run(*args: str) -> Any:
        return CliRunner().invoke(app, ["forget", *args, "--fleet", str(here)])

    shown = run("a", "b", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "2 jobs" in shown.stdout
    assert "nothing was deleted" in shown.stderr
    assert len(world.ledger.jobs()) == 2
    told = json.loads(run("a", "gone", "--json").stdout)
    assert told["not_there"] == ["gone"]
    (job,) = told["jobs"]
    assert (job["job_id"], job["state"], job["tasks"], job["steps"]) == ("a", "done", 1, 1)
    assert job["freed_bytes"] > 0
    assert "freed MB" in run("b").stdout
    for args, words in [
        ((), "name jobs, or say --older-than"),
        (("a", "--older-than", "3d"), "name jobs, or say --older-than"),
        (("--older-than", "3d", "--force"), "for jobs that are named"),
        (("--older-than", "soon"), "no length of time"),
        (("a",), "no job 'a' in the ledger"),
    ]:
        failed = run(*args)
        assert isinstance(failed.exception, ConfigError)
        assert words in str(failed.exception)
