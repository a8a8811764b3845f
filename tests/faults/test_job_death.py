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


def test_everything_is_killed_under_one_job_at_last_its_command_too(world: World) -> None:
    kills = (("worker", 20), ("ledger", 90), ("scheduler", 160), ("supervisor", 230))
    # One that was under way at every death has been started seven times.
    with world.job("killed", 400, attempts="8") as job:
        for kind, lines in kills:
            job.until(lines)
            job.kill(kind)
        job.until(290)
        for point in ("answered", "recorded"):
            world.arm(point)
        job.until(330)
        job.kill_driver()
        job.resume()
        found = job.verdict()
    assert found.is_clean, found
    assert found.runs == 3
    assert found.reused > 0, "what was answered was not asked again"
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
