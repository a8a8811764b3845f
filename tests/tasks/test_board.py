"""What workers get, and what each outcome of an attempt means."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentcloud.tasks.board import Board
from agentcloud.tasks.sources import BadInput, Input
from agentcloud.tasks.spec import TaskEnd, TaskInput, TaskResult
from agentcloud.tasks.tally import Tally


def inputs(count: int) -> list[Input | BadInput]:
    return [Input(f"t{n}", n, {"n": n}) for n in range(count)]


def board(
    entries: int | list[Input | BadInput] = 3,
    *,
    attempts: int = 3,
    finished: set[str] | None = None,
) -> Board:
    given = inputs(entries) if isinstance(entries, int) else entries
    return Board(iter(given), attempts=attempts, finished_ids=finished or set(), tally=Tally())


def end(task: TaskInput, how: TaskEnd, error: str | None = None) -> TaskResult:
    return TaskResult(task.id, how, 0.1, "2026-01-01T00:00:00Z", output="ok", error=error)


def finished(of: Board) -> bool:
    return of.is_finished


def lines(of: Board) -> list[dict[str, Any]]:
    return [json.loads(each.line) for each in of.drain_ended()]


def test_each_input_is_handed_out_once_and_gets_one_line() -> None:
    b = board(3)
    first = b.take("w0", 2)
    assert [task.id for task in first] == ["t0", "t1"]
    second = b.take("w1", 5)
    assert [task.id for task in second] == ["t2"]
    assert not finished(b)
    b.settle("w0", [end(task, TaskEnd.DONE) for task in first])
    b.settle("w1", [end(second[0], TaskEnd.FAILED, "ValueError: no")])
    assert finished(b)
    assert [(line["id"], line["status"]) for line in lines(b)] == [
        ("t0", "done"),
        ("t1", "done"),
        ("t2", "failed"),
    ]
    assert repr(b) == (
        "Board(done=2, failed=1, running=0, suspects=0, again=0, read_all=True, stop=None)"
    )


def test_inputs_are_read_only_as_workers_have_room() -> None:
    read = 0

    def counted() -> Iterator[Input]:
        nonlocal read
        for entry in inputs(100):
            read += 1
            assert isinstance(entry, Input)
            yield entry

    b = Board(counted(), attempts=1, finished_ids=set(), tally=Tally())
    b.take("w0", 7)
    assert read == 7


def test_tasks_of_an_earlier_run_are_not_done_again() -> None:
    b = board(3, finished={"t0", "t2"})
    assert [task.id for task in b.take("w0", 9)] == ["t1"]
    assert b.already_done == 2


def test_a_bad_input_gets_a_failed_line_that_names_it() -> None:
    b = board([BadInput("line:1", 0, "in.jsonl:1: not JSON"), *inputs(1)])
    b.take("w0", 1)
    (line,) = lines(b)
    assert (line["id"], line["status"], line["error"]) == (
        "line:1",
        "failed",
        "in.jsonl:1: not JSON",
    )
    assert (b.bad_inputs, b.failed) == (1, 1)


def test_a_passing_failure_is_tried_again_after_fresh_inputs_and_then_fails() -> None:
    b = board(2, attempts=2)
    (first,) = b.take("w0", 1)
    b.settle("w0", [end(first, TaskEnd.PASSING, "overloaded")])
    (fresh,) = b.take("w0", 1)
    (again,) = b.take("w0", 1)
    assert (fresh.id, again.id, again.attempt) == ("t1", "t0", 2)
    b.settle("w0", [end(fresh, TaskEnd.DONE), end(again, TaskEnd.PASSING, "overloaded")])
    assert lines(b)[1]["error"] == "overloaded (attempt 2 of 2)"
    assert finished(b)


def test_an_agents_own_error_is_not_paid_for_twice() -> None:
    b = board(1, attempts=5)
    (task,) = b.take("w0", 1)
    b.settle("w0", [end(task, TaskEnd.FAILED, "ValueError: no")])
    assert b.take("w0", 1) == []
    assert finished(b)
    assert lines(b)[0]["attempts"] == 1


def test_a_used_up_budget_stops_the_job_and_leaves_no_line_for_its_task() -> None:
    b = board(3)
    one, two = b.take("w0", 2)
    b.settle("w0", [end(one, TaskEnd.BUDGET, "budget of job:j is used up")])
    assert (b.stop_reason, b.stop_detail) == ("budget", "budget of job:j is used up")
    assert b.take("w0", 5) == []
    assert not finished(b)  # the other task may still end well
    b.settle("w0", [end(two, TaskEnd.DONE)])
    assert finished(b)
    assert [line["id"] for line in lines(b)] == ["t1"]


def test_outcomes_of_a_worker_that_was_given_up_on_are_dropped() -> None:
    b = board(1)
    (task,) = b.take("w0", 1)
    assert b.lose("w0", "killed", "") == 1
    (again,) = b.take("w1", 1)
    b.settle("w0", [end(task, TaskEnd.DONE)])
    assert b.done == 0
    b.settle("w1", [end(again, TaskEnd.DONE)])
    assert b.done == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_task_that_kills_its_worker_fails_alone(workers: int) -> None:
    b = board(40, attempts=3)
    killers = {"t5", "t20"}
    deaths = 0
    holding: dict[str, list[TaskInput]] = {f"w{n}": [] for n in range(workers)}
    while not b.is_finished:
        for worker in list(holding):
            held = [*holding.pop(worker), *b.take(worker, 10)]
            if killers & {task.id for task in held}:
                b.lose(worker, "killed by signal 9", "")
                deaths += 1
                holding[f"w{workers + deaths}"] = []
            else:
                b.settle(worker, [end(task, TaskEnd.DONE) for task in held])
                holding[worker] = []
    ended = {line["id"]: line for line in lines(b)}
    assert {id_ for id_, line in ended.items() if line["status"] == "failed"} == killers
    assert ended["t5"]["error"] == "its worker died: killed by signal 9 (attempt 3 of 3)"
    assert len(ended) == 40


class BoardMachine(RuleBasedStateMachine):
    """Any interleaving: one line per input at the end, no task twice at once, attempts bounded."""

    @initialize(count=st.integers(0, 12), attempts=st.integers(1, 3))
    def begin(self, count: int, attempts: int) -> None:
        self.count = count
        self.attempts = attempts
        self.board = board(count, attempts=attempts)
        self.held: dict[str, list[TaskInput]] = {}
        self.starts: dict[str, int] = {}
        self.lines: list[dict[str, Any]] = []
        self.dropped = 0

    @rule(worker=st.sampled_from(["w0", "w1", "w2"]), room=st.integers(0, 5))
    def take(self, worker: str, room: int) -> None:
        tasks = self.board.take(worker, room)
        assert len(tasks) <= room
        for task in tasks:
            assert all(task.id != other.id for mine in self.held.values() for other in mine)
            self.starts[task.id] = self.starts.get(task.id, 0) + 1
            assert task.attempt == self.starts[task.id] <= self.attempts
            self.held.setdefault(worker, []).append(task)

    @rule(
        worker=st.sampled_from(["w0", "w1", "w2"]),
        how=st.sampled_from([TaskEnd.DONE, TaskEnd.FAILED, TaskEnd.PASSING]),
    )
    def settle(self, worker: str, how: TaskEnd) -> None:
        if self.held.get(worker):
            self.board.settle(worker, [end(self.held[worker].pop(), how, "error")])

    @rule(worker=st.sampled_from(["w0", "w1", "w2"]))
    def lose(self, worker: str) -> None:
        assert self.board.lose(worker, "killed", "") == len(self.held.pop(worker, []))

    @invariant()
    def lines_add_up(self) -> None:
        self.lines += lines(self.board)
        ids = [line["id"] for line in self.lines]
        assert len(set(ids)) == len(ids) == self.board.done + self.board.failed
        assert self.board.running == sum(map(len, self.held.values()))
        if self.board.is_finished:
            assert len(ids) == self.count


BoardMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_any_interleaving = BoardMachine.TestCase


def test_a_restart_gets_the_extra_attempts_that_are_left_and_spends_one() -> None:
    b = Board(iter(inputs(1)), attempts=9, extra_attempts=4, finished_ids=set(), tally=Tally())
    (first,) = b.take("w0", 1)
    assert first.extra_used == 0
    used_two = TaskResult("t0", TaskEnd.PASSING, 0.1, "", error="overloaded", extra_used=2)
    b.settle("w0", [used_two])
    (second,) = b.take("w0", 1)
    assert second.extra_used == 3
    used_all = TaskResult("t0", TaskEnd.PASSING, 0.1, "", error="overloaded", extra_used=4)
    b.settle("w0", [used_all])
    assert b.take("w0", 1) == []
    (line,) = lines(b)
    assert (line["status"], line["attempts"]) == ("failed", 2)


def test_a_dead_worker_costs_its_task_one_extra_attempt() -> None:
    b = Board(iter(inputs(1)), attempts=9, extra_attempts=1, finished_ids=set(), tally=Tally())
    b.take("w0", 1)
    b.lose("w0", "killed", "")
    (again,) = b.take("w1", 1)
    assert again.extra_used == 1
    b.lose("w1", "killed", "")
    assert [line["status"] for line in lines(b)] == ["failed"]
