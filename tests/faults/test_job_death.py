"""Every process of a job is killed while it runs: nothing is lost, and nothing paid in silence."""

from __future__ import annotations

from collections.abc import Iterator

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


def test_a_paused_job_starts_no_task_and_goes_on_where_it_was(world: World) -> None:
    with world.job("paused", 150) as job:
        job.until(20)
        paused = world.head.cli("pause", job.job_id, "--json", cwd=world.folder, address=True)
        assert paused.json["state"] == "paused", paused.err
        again = world.head.cli("pause", job.job_id, "--json", cwd=world.folder, address=True)
        # What ran when it was paused has ended meanwhile, and nothing else was begun.
        assert again.json["tasks"]["running"] == 0
        assert again.json["tasks"]["done"] < 150
        resumed = world.head.cli("resume", job.job_id, "--json", cwd=world.folder, address=True)
        assert resumed.json["state"] == "running", resumed.err
        assert job.verdict().is_clean
