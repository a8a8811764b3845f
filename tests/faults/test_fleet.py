"""A whole fleet on real engines: killed replicas and schedulers cost time, and no call."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from agentcloud.cluster import lifecycle
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.contracts import FLEET_NAME, RAY_NAMESPACE, SCHEDULER_NAME
from agentcloud.cluster.errors import ConfigError, NoEndpoint
from agentcloud.cluster.reaper import MARK, marked
from agentcloud.tasks.cli_metrics import metrics_targets, scrape
from tests.conftest import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(600)]

LEAVE_S = 5.0
HEAL_S = 240.0


def fleet_config(folder: Path, **model: Any) -> FleetConfig:
    settings = {"path": str(folder), "kv_cache_gib": 0.0625, "context_tokens": 2048}
    return parse_fleet(
        {
            "models": {"pool": settings | {"replicas": 2, "max_concurrency": 64} | model},
            "retry": {"base_s": 0.2},
        }
    )


@pytest.fixture(scope="module")
def fleet(ray_cluster: None, tiny_model: Path) -> Iterator[lifecycle.UpInfo]:
    info = lifecycle.up(fleet_config(tiny_model))
    marks = {replica_mark(spec.name) for spec in info.endpoints}
    assert len(marks) == 2
    yield info
    # The replica that was killed has been started again, under another mark.
    marks |= {replica_mark(replica.name) for replica in lifecycle.fleet_status().replicas}
    lifecycle.down()
    assert not lifecycle.is_up()

    def left() -> list[int]:
        return [pid for mark in marks for pid in marked(mark)]

    assert wait_until(lambda: not left(), LEAVE_S), left()


def replica_pid(name: str) -> int:
    actor = ray.get_actor(name, namespace=RAY_NAMESPACE)
    return int(ray.get(actor.ready.remote(), timeout=60).pid)


def replica_mark(name: str) -> str:
    """What every process of a replica carries in its environment."""
    return psutil.Process(replica_pid(name)).children()[0].environ()[MARK]


async def ask(client: AsyncAgentCloud, number: int, max_tokens: int) -> Any:
    return await client.messages.create(
        model="small",
        max_tokens=max_tokens,
        messages=[{"role": "user", "content": f"call {number}"}],
    )


def test_a_broken_model_folder_leaves_nothing_up(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"models\.pool\.path.*weights"):
        lifecycle.up(fleet_config(tmp_path))
    assert not lifecycle.is_up()


async def test_a_replica_killed_in_mid_load_loses_no_call(fleet: lifecycle.UpInfo) -> None:
    victim = "replica:pool:0"
    pid = await asyncio.to_thread(replica_pid, victim)
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    async with AsyncAgentCloud() as client:
        calls = [asyncio.create_task(ask(client, n, max_tokens=300)) for n in range(40)]
        actor = ray.get_actor(victim, namespace=RAY_NAMESPACE)
        while not (await actor.load.remote()).running:  # noqa: ASYNC110 - the load is polled
            await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*calls)

    assert all(answer.usage.output_tokens > 0 for answer in answers)
    moved = [answer for answer in answers if answer.agentcloud.attempts > 1]
    assert moved, "the kill hit no call"
    left = await asyncio.to_thread(
        wait_until, lambda: not [p for p in family if p.is_running()], LEAVE_S
    )
    assert left, [p.cmdline() for p in family if p.is_running()]

    def healed() -> bool:
        status = lifecycle.fleet_status()
        return status.all_ready() and sum(r.restarts for r in status.replicas) == 1

    assert await asyncio.to_thread(wait_until, healed, HEAL_S), lifecycle.fleet_status()
    async with AsyncAgentCloud() as client:
        served: set[str] = set()
        for _ in range(20):  # it is chosen again once its probe has gone well
            answers = await asyncio.gather(*(ask(client, n, max_tokens=64) for n in range(60)))
            served |= {answer.agentcloud.endpoint for answer in answers}
            if victim in served:
                break
    assert victim in served, "the healed replica gets no calls"


async def test_a_scheduler_that_was_killed_learns_its_endpoints_again(
    fleet: lifecycle.UpInfo,
) -> None:
    scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
    epoch = await scheduler.ping.remote()
    ray.kill(scheduler, no_restart=False)

    def again() -> bool:
        try:
            return bool(ray.get(scheduler.ping.remote(), timeout=10) != epoch)
        except ray.exceptions.RayError:
            return False

    assert await asyncio.to_thread(wait_until, again, 60)

    def knows() -> bool:
        return len(ray.get(scheduler.snapshot.remote(), timeout=10)["endpoints"]) == 2

    assert await asyncio.to_thread(wait_until, knows, 30)
    async with AsyncAgentCloud() as client:
        assert (await ask(client, 0, max_tokens=4)).agentcloud.endpoint.startswith("replica:pool")


async def test_a_fleet_that_was_killed_goes_on_with_the_replicas_that_run(
    fleet: lifecycle.UpInfo,
) -> None:
    names = [spec.name for spec in fleet.endpoints]
    pids = await asyncio.to_thread(lambda: [replica_pid(name) for name in names])
    scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
    epoch = await scheduler.ping.remote()
    async with AsyncAgentCloud() as client:
        done = asyncio.Event()
        answers: list[Any] = []

        async def steady(number: int) -> None:
            while not done.is_set():
                answers.append(await ask(client, number, max_tokens=100))

        async def served(more: int) -> None:
            enough = len(answers) + more
            while len(answers) < enough:
                await asyncio.sleep(0.05)
                assert not any(caller.done() for caller in callers), "a call failed"

        callers = [asyncio.create_task(steady(number)) for number in range(6)]
        try:
            await served(10)
            (killed,) = [p for p in psutil.Process().children(recursive=True) if is_fleet(p)]
            killed.kill()
            await served(20)
            # It is asked while it is restarted; those found are told of as ready again.
            again = await asyncio.to_thread(
                wait_until, lambda: lifecycle.fleet_status().is_settled(), HEAL_S
            )
            assert again, lifecycle.fleet_status()
            ray.kill(scheduler, no_restart=False)
            await served(20)
        finally:
            done.set()
            await asyncio.gather(*callers)
    assert all(answer.agentcloud.attempts == 1 for answer in answers), "a call was moved"
    assert await scheduler.ping.remote() != epoch
    status = lifecycle.fleet_status()
    assert sorted(replica.name for replica in status.replicas) == sorted(names)
    assert status.all_ready()
    assert [replica.restarts for replica in status.replicas] == [0, 0]
    assert await asyncio.to_thread(lambda: [replica_pid(name) for name in names]) == pids


def is_fleet(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[0].startswith("ray::Fleet")
    except (psutil.Error, IndexError):
        return False


async def test_scaling_down_drains_before_it_stops(fleet: lifecycle.UpInfo) -> None:
    actor = ray.get_actor(FLEET_NAME, namespace=RAY_NAMESPACE)
    async with AsyncAgentCloud() as client:
        calls = [asyncio.create_task(ask(client, n, max_tokens=200)) for n in range(20)]
        await asyncio.sleep(0)
        await actor.scale.remote("pool", 1)
        answers = await asyncio.gather(*calls)
    assert all(answer.agentcloud.attempts == 1 for answer in answers), "a drained call was moved"
    assert [r.name for r in lifecycle.fleet_status().replicas] == ["replica:pool:0"]
    with pytest.raises(ray.exceptions.RayTaskError, match="no local model 'nope'"):
        await actor.scale.remote("nope", 1)


@pytest.mark.slow
async def test_changed_settings_are_rolled_out_without_a_failed_call(
    fleet: lifecycle.UpInfo, tiny_model: Path
) -> None:
    actor = ray.get_actor(FLEET_NAME, namespace=RAY_NAMESPACE)
    changed = fleet_config(tiny_model, replicas=1, max_output_tokens=100)
    answers: list[Any] = []
    async with AsyncAgentCloud() as client:
        done = asyncio.Event()

        async def steady(number: int) -> None:
            while not done.is_set():
                answers.append(await ask(client, number, max_tokens=20))
                await asyncio.sleep(0.05)  # so that the new engine starts beside it

        callers = [asyncio.create_task(steady(number)) for number in range(3)]
        try:
            lines: list[str] = []
            info = await asyncio.to_thread(lifecycle.up, changed, on_progress=lines.append)
            last = await ask(client, 0, max_tokens=20)
        finally:
            done.set()
            await asyncio.gather(*callers)
        with pytest.raises(NoEndpoint, match="generates at most 100 tokens"):
            await ask(client, 0, max_tokens=200)
    assert lines[0] == "pool: replicas are replaced (max_output_tokens); replicas 2 -> 1"
    assert [spec.name for spec in info.endpoints] == ["replica:pool:1"]
    served = [answer.agentcloud.endpoint for answer in answers]
    assert "replica:pool:0" in served[:20]
    assert last.agentcloud.endpoint == "replica:pool:1"
    assert all(answer.agentcloud.attempts == 1 for answer in answers), "a call was sent twice"
    assert max(answer.agentcloud.timings.queue_s for answer in answers) < 2.0, "nobody waited"
    (model,) = (await actor.status.remote()).models
    assert (model.running, model.old, model.draining, model.target) == (1, 0, 0, 1)
    (target,) = metrics_targets()

    def exported() -> dict[str, float]:
        found = (each for each in scrape(target) if each.name == "replicas")
        return {each.labels["state"]: each.value for each in found if each.value}

    shown = await asyncio.to_thread(
        wait_until, lambda: exported() == {"target": 1.0, "running": 1.0}, 30
    )
    assert shown, exported()


@pytest.mark.slow
def test_settings_that_do_not_start_change_nothing(
    fleet: lifecycle.UpInfo, tiny_model: Path
) -> None:
    before = [replica.name for replica in lifecycle.fleet_status().replicas]
    bad = fleet_config(tiny_model, replicas=1, engine_args={"dtype": "no such"})
    with pytest.raises(ConfigError, match=r"did not start: .*pool keeps its former settings"):
        lifecycle.up(bad)
    assert wait_until(lambda: lifecycle.fleet_status().is_settled(), 30)
    assert [replica.name for replica in lifecycle.fleet_status().replicas] == before
    for known_before, line in (
        (fleet_config(tiny_model / "none"), "no model folder"),
        (fleet_config(tiny_model, dtype="float77"), "unknown dtype 'float77'"),
    ):
        with pytest.raises(ConfigError, match=line):
            lifecycle.up(known_before)
    status = lifecycle.fleet_status()
    assert [(r.name, r.is_current) for r in status.replicas] == [(name, True) for name in before]
