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


def test_everything_is_killed_under_one_job_at_last_its_command_too(world: World) -> None:
    kills = {"worker": 10, "ledger": 50, "fleet": 80, "scheduler": 90, "supervisor": 130}
    # One that was under way at every death has been started seven times.
    with world.job("killed", 250, attempts="8") as job:
        for kind, lines in kills.items():
            job.until(lines)
            job.kill(kind)
        job.until(165)
        for point in ("answered", "recorded"):
            world.arm(point)
        job.until(190)
        job.kill_driver()
        job.resume()
        found = job.verdict()
    assert found.is_clean, found
    assert found.runs == 3
    assert found.reused > 0, "what was answered was not asked again"
    assert not list(world.faults.iterdir()), "every point was reached"
