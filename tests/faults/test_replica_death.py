"""SIGKILL for each process of a replica, and for its caller: nothing hangs, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from agentcloud.cluster.contracts import EndpointSpec
from agentcloud.cluster.errors import ReplicaLost
from agentcloud.cluster.local import LocalEndpoint
from agentcloud.cluster.replica import start_replica
from tests.conftest import (
    RunningReplica,
    local_spec,
    message_call,
    tiny_settings,
    wait_until,
)

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(420)]

LEAVE_S = 5.0

Start = Callable[..., RunningReplica]


@pytest.fixture
def start(ray_cluster: None, tiny_model: Path) -> Iterator[Start]:
    """Starts replicas of the test's own, by name."""
    actors: list[Any] = []

    def run(name: str, *, tensor_parallel: int = 1) -> RunningReplica:
        settings = tiny_settings(tiny_model, tensor_parallel=tensor_parallel)
        actor = start_replica(name, settings, detached=False)
        actors.append(actor)
        info = ray.get(actor.ready.remote(), timeout=300)
        return RunningReplica(name, actor, info, settings, replace(local_spec(), name=name))

    yield run
    for actor in actors:
        ray.kill(actor)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def engine_core(pid: int) -> psutil.Process:
    """A replica's engine: what its fork server forked. (Titles are not always set after a fork.)"""
    (server,) = [p for p in psutil.Process(pid).children() if "forkserver" in " ".join(p.cmdline())]
    (core,) = server.children()
    return core


def engine_workers(pid: int) -> list[psutil.Process]:
    """The engine's workers, one for each tensor parallel rank."""
    return engine_core(pid).children()


async def lose(spec: EndpointSpec, kill: Callable[[], None]) -> list[BaseException]:
    """Kill in mid-load; what each of the calls on the replica got."""
    endpoint = LocalEndpoint(spec)
    calls = [
        asyncio.create_task(endpoint.create(message_call(f"doomed-{i}", max_tokens=1900)))
        for i in range(8)
    ]
    stream = endpoint.stream(message_call("doomed-stream", max_tokens=1900))
    await anext(stream)
    kill()

    async def rest() -> None:
        async for _ in stream:
            pass

    outcomes = await asyncio.wait_for(
        asyncio.gather(*calls, rest(), return_exceptions=True), timeout=30
    )
    await endpoint.close()
    return [outcome for outcome in outcomes if isinstance(outcome, BaseException)]


@pytest.mark.slow
async def test_a_killed_actor_loses_its_calls_and_leaves_no_process(start: Start) -> None:
    replica = start("replica:tiny:actor")
    family = descendants(replica.info.pid)
    assert {engine_core(replica.info.pid), *engine_workers(replica.info.pid)} <= set(family)

    lost = await lose(replica.spec, lambda: os.kill(replica.info.pid, signal.SIGKILL))

    assert len(lost) == 9
    assert all(isinstance(error, ReplicaLost) for error in lost), lost
    assert all(error.endpoint == replica.name for error in lost if isinstance(error, ReplicaLost))
    assert wait_until(lambda: not alive(family), LEAVE_S), alive(family)
    with pytest.raises(ReplicaLost):
        await LocalEndpoint(replica.spec).create(message_call("after"))


@pytest.mark.slow
async def test_a_killed_engine_ends_its_replica_and_leaves_no_process(start: Start) -> None:
    replica = start("replica:tiny:engine")
    family = [psutil.Process(replica.info.pid), *descendants(replica.info.pid)]
    engine = engine_core(replica.info.pid)

    lost = await lose(replica.spec, engine.kill)

    assert len(lost) == 9
    assert all(isinstance(error, ReplicaLost) for error in lost), lost
    assert wait_until(lambda: not alive(family), LEAVE_S), alive(family)


async def greedy(spec: EndpointSpec) -> list[str]:
    endpoint = LocalEndpoint(spec)
    answers = await asyncio.gather(
        *(
            endpoint.create(message_call(f"greedy-{i}", f"{i} " * i, max_tokens=24, temperature=0))
            for i in range(6)
        )
    )
    await endpoint.close()
    return [answer.message.content[0].text for answer in answers]  # type: ignore[union-attr]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="tensor parallel 2 binds 2 cores")
async def test_two_tensor_parallel_workers_answer_as_one_and_die_as_one(
    start: Start, replica: RunningReplica
) -> None:
    split = start("replica:tiny:split", tensor_parallel=2)
    family = [psutil.Process(split.info.pid), *descendants(split.info.pid)]
    workers = engine_workers(split.info.pid)
    assert len(workers) == 2

    whole_texts = await greedy(replica.spec)
    split_texts = await greedy(split.spec)
    assert split_texts == whole_texts
    assert len(set(split_texts)) > 1, "different prompts should differ"

    lost = await lose(split.spec, workers[1].kill)

    assert len(lost) == 9
    assert all(isinstance(error, ReplicaLost) for error in lost), lost
    assert wait_until(lambda: not alive(family), LEAVE_S), alive(family)


def test_calls_of_a_killed_caller_are_aborted(replica: RunningReplica) -> None:
    class Caller:
        """A process of its own with calls that would run for many seconds."""

        def pid(self) -> int:
            return os.getpid()

        async def call(self, spec: EndpointSpec, calls: list[Any]) -> None:
            endpoint = LocalEndpoint(spec)
            await asyncio.gather(*(endpoint.create(call) for call in calls))

    caller: Any = ray.remote(Caller).options(num_cpus=0).remote()
    pid = ray.get(caller.pid.remote(), timeout=60)
    calls = [message_call(f"orphan-{i}", max_tokens=2000) for i in range(32)]
    done = caller.call.remote(replica.spec, calls)

    def running() -> int:
        load = ray.get(replica.actor.load.remote(), timeout=10)
        return int(load.running + load.waiting)

    assert wait_until(lambda: running() > 0, 20)
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    assert wait_until(lambda: running() == 0, LEAVE_S)
    assert time.monotonic() - killed_s < LEAVE_S
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(done, timeout=10)
