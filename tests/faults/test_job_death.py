"""Every process of a job is killed while it runs: nothing is lost, and nothing paid in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.job_world import World, job_world

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with job_world(tmp_path_factory.mktemp("jobs")) as made:
        yield made


def test_worker_ledger_scheduler_and_supervisor_are_killed_under_one_job(world: World) -> None:
    kills = (("worker", 20), ("ledger", 120), ("scheduler", 220), ("supervisor", 320))
    with world.job("killed", 500, attempts="6") as job:
        for kind, lines in kills:
            job.until(lines)
            job.kill(kind)
        found = job.verdict()
    assert found.is_clean, found
    assert found.runs == 2
    assert found.reused > 0, "what was answered was not asked again"


def test_the_command_is_killed_and_resumed_with_its_processes_dying_between_states(
    world: World,
) -> None:
    with world.job("resumed", 200, attempts="6") as job:
        job.until(20)
        for point in ("answered", "recorded"):
            world.arm(point)
        job.until(60)
        job.kill_driver()
        job.resume()
        for point in ("settled", "before-step", "after-grant"):
            world.arm(point)
        found = job.verdict()
    assert found.is_clean, found
    assert found.runs == 2
    assert not list(world.faults.iterdir()), "every point was reached"


def test_a_task_waits_for_a_person_without_a_worker_and_goes_on_with_the_answer(
    world: World,
) -> None:
    def cli(*args: str) -> Any:
        ended = world.head.cli(*args, "--json", cwd=world.folder, address=True)
        assert ended.status == 0, ended.err
        return ended.json

    with world.job("asks", 2, agent="asks", attempts="1") as job:
        while len(asked := cli("approvals", job.job_id)) < 2:
            pass
        assert {each["question"] for each in asked} == {"Send it?"}
        assert all("synthetic" in each["details"]["draft"] for each in asked)
        job.kill("worker")  # who holds nothing: the question outlives it
        cli("approve", job.job_id, "asks-0", "--comment", "fine")
        cli("approve", job.job_id, "asks-1", "--deny")
        found = job.verdict()
        assert job.outputs() == {"asks-0": "True fine", "asks-1": "False "}
    assert (found.paid_twice, found.reused) == (0, 4), "the draft and the answer, of each"
    refused = world.head.cli("approve", job.job_id, "asks-0", cwd=world.folder, address=True)
    assert refused.status == 2
    assert "does not run on this cluster" in refused.err
