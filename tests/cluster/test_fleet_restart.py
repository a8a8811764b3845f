"""A killed fleet actor goes on: on a real Ray, with light actors in the replicas' places."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from agentcloud.cluster import lifecycle
from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.contracts import FLEET_NAME, RAY_NAMESPACE, LeaseRequest
from agentcloud.cluster.fleet import FleetActor
from agentcloud.cluster.fleet_memory import Memory
from agentcloud.cluster.fleet_status import FleetStatus, ReplicaState
from agentcloud.cluster.replica_wire import ReplicaInfo
from agentcloud.cluster.scheduler_actor import start_scheduler
from agentcloud.cluster.scheduler_client import SchedulerClient
from agentcloud.cluster.scheduler_local import unused
from tests.conftest import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

HOSTED = "main/claude-haiku-5-5"
KEYS = {"path": "embedded:triage-small", "context_tokens": 1024, "kv_cache_gib": 0.0625, "cpus": 1}
LIMIT_S = 60.0


def start_light(name: str, _engine: Any, **options: Any) -> Any:
    from agentcloud.cluster.contracts import LoadReport

    class Light:
        """Stands where a replica would: it starts nothing."""

        async def ready(self) -> ReplicaInfo:
            return ReplicaInfo(name, "light", 1024, os.getpid(), "", 0.0)

        async def report(self, *, anew: bool) -> tuple[LoadReport, None]:
            return LoadReport(), None

        async def shutdown(self) -> None:
            """Nothing was started."""

    options = {"lifetime": "detached", "num_cpus": 0, **options}
    return ray.remote(Light).options(name=name, namespace=RAY_NAMESPACE, **options).remote()


class World:
    """A fleet of light replicas and its scheduler."""

    def __init__(self, folder: Path) -> None:
        (folder / "key").write_text("not used")
        self._folder = folder
        config = self.config(a=KEYS | {"replicas": 2}, b=KEYS)
        self.scheduler = start_scheduler(config)
        self.fleet = FleetActor.options(
            name=FLEET_NAME, namespace=RAY_NAMESPACE, lifetime="detached", num_cpus=0
        ).remote(config, "fleet.yaml", start_light)
        ray.get(self.fleet.start.remote(), timeout=60)
        self.until(FleetStatus.is_settled)

    def config(self, *, policy: str = "balanced", **models: Any) -> FleetConfig:
        return parse_fleet(
            {
                "models": models,
                "policy": policy,
                "accounts": {"main": {"api_key_file": str(self._folder / "key")}},
                "hosted": {"claude-haiku-5-5": {"account": "main"}},
                "scaling": {"every_s": 0.2, "drain_s": 60},
                "health": {"report_s": 0.1},
                "store": f"sqlite:///{self._folder}/store.db",
            }
        )

    def status(self) -> FleetStatus:
        return lifecycle.fleet_status()

    def until(self, holds: Any) -> None:
        assert wait_until(lambda: holds(self.status()), LIMIT_S), self.status()

    def pids(self) -> dict[str, int]:
        names = [each.name for each in self.status().replicas]
        return {name: ray.get(actor(name).ready.remote(), timeout=30).pid for name in names}

    def kill_fleet(self) -> int:
        """SIGKILL its process, and wait for nothing."""
        (pid,) = fleet_pids()
        os.kill(pid, signal.SIGKILL)
        return pid

    def endpoints(self) -> set[str]:
        return set(ray.get(self.scheduler.snapshot.remote(), timeout=30)["endpoints"])


def actor(name: str) -> Any:
    return ray.get_actor(name, namespace=RAY_NAMESPACE)


def fleet_pids() -> list[int]:
    """Of this run's processes: other clusters may run on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            if process.cmdline()[0].startswith("ray::Fleet"):
                found.append(process.pid)
    return found


def replicas_left() -> list[str]:
    """Fleets' replicas and what is reserved for them; the one that tests share is no fleet's."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    groups = placement_group_table().values()
    names += [each["name"] for each in groups if each["state"] != "REMOVED"]
    return [name for name in names if name.startswith(("replica:a", "replica:b", "replica:stray"))]


@pytest.fixture(scope="module")
def world(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("fleet"))
    yield made
    lifecycle.down()


def nothing_is_left() -> bool:
    return wait_until(lambda: not replicas_left() and not fleet_pids(), 10)


def test_what_runs_is_kept_what_is_gone_starts_and_strays_end(world: World) -> None:
    ray.get(world.fleet.scale.remote("a", 3), timeout=30)
    world.until(FleetStatus.is_settled)
    before = world.pids()
    start_light("replica:stray:0", None)
    old = world.kill_fleet()
    ray.kill(actor("replica:a:1"))
    world.until(lambda status: status.is_settled() and len(status.replicas) == 4)
    assert fleet_pids() != [old]
    after = world.pids()
    assert {name for name in before if after[name] != before[name]} == {"replica:a:1"}
    status = world.status()
    assert all(each.restarts == 0 for each in status.replicas)
    assert [(each.model, each.least, each.target) for each in status.models] == [
        ("a", 3, 3),
        ("b", 1, 1),
    ]
    assert "replica:stray:0" not in replicas_left()
    assert world.endpoints() == {*before, HOSTED}
    # It drains and starts as ever, and knows where each replica's room is.
    ray.get(world.fleet.scale.remote("a", 1), timeout=30)
    assert sorted(replicas_left()) == ["replica:a:0"] * 2 + ["replica:b:0"] * 2


@pytest.mark.slow
def test_a_scheduler_that_restarts_gets_the_file_that_was_applied_last(world: World) -> None:
    changed = world.config(policy="latency", a=KEYS | {"replicas": 2}, b=KEYS)
    ray.get(world.fleet.apply.remote(changed, "fleet.yaml"), timeout=30)
    names = world.endpoints()
    world.kill_fleet()
    ray.kill(world.scheduler, no_restart=False)

    def knows() -> bool:
        try:
            config = ray.get(world.scheduler.config.remote(), timeout=10)
            return config == changed and world.endpoints() == names
        except ray.exceptions.RayActorError:
            return False

    assert wait_until(knows, LIMIT_S)
    world.until(FleetStatus.is_settled)


@pytest.mark.slow
async def test_a_drain_and_a_rollout_go_on(world: World) -> None:
    before = await asyncio.to_thread(world.pids)
    client = SchedulerClient(world.scheduler)
    request = LeaseRequest("busy", "b", 10, 10)
    lease = await client.acquire(request)
    changed = world.config(a=KEYS | {"replicas": 2, "max_output_tokens": 100})
    await world.fleet.apply.remote(changed, "fleet.yaml")

    def drains(status: FleetStatus) -> bool:
        return any(
            each.name == "replica:b:0" and each.state is ReplicaState.DRAINING
            for each in status.replicas
        )

    await asyncio.to_thread(world.until, drains)
    await asyncio.to_thread(world.kill_fleet)
    await asyncio.to_thread(world.until, drains)
    assert (await actor("replica:b:0").ready.remote()).pid == before["replica:b:0"]
    client.settle(unused(lease))
    await client.flush()
    await client.close()
    await asyncio.to_thread(
        world.until,
        lambda status: status.is_settled() and [m.model for m in status.models] == ["a"],
    )
    after = await asyncio.to_thread(world.pids)
    assert len(after) == 2
    assert not set(after.values()) & set(before.values()), "those with older settings are replaced"


def test_down_leaves_nothing_where_the_fleet_is_being_restarted(world: World) -> None:
    world.kill_fleet()
    assert lifecycle.down()
    assert nothing_is_left(), replicas_left()
    assert repr(Memory()) == "<Memory of nothing>"


@pytest.mark.slow
def test_down_leaves_nothing_where_the_fleet_does_not_answer(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle.down()
    World(tmp_path)
    monkeypatch.setattr(lifecycle, "STOP_TIMEOUT_S", 1.0)
    (pid,) = fleet_pids()
    os.kill(pid, signal.SIGSTOP)
    assert lifecycle.down()
    assert nothing_is_left(), replicas_left()
    assert repr(Memory()) == "<Memory of nothing>"
