"""The scheduler's actor and client on a real Ray: one limit over processes, deaths, restarts."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from typing import Any

import pytest
import ray

from agentcloud.cluster.contracts import LeaseRequest
from agentcloud.cluster.errors import ConnectionFailed
from agentcloud.cluster.scheduler_actor import SchedulerActor
from agentcloud.cluster.scheduler_client import SchedulerClient
from tests.cluster.scheduling import HAIKU, fleet, hosted, ok, replica

pytestmark = pytest.mark.ray


def start(name: str, timeout_s: float = 15.0, **more: Any) -> Any:
    """A scheduler of a test's own, restarted by Ray like the cluster's."""
    return SchedulerActor.options(
        name=name, namespace="agentcloud", max_restarts=-1, max_concurrency=1000, num_cpus=0
    ).remote(fleet(**more), holder_timeout_s=timeout_s)


class Process:
    """A process that takes leases."""

    async def take(self, actor: Any, prefix: str, calls: int, model: str, wait_s: float) -> int:
        """Ask for many at once; how many came within a time."""
        self.client = SchedulerClient(actor)
        tasks = [
            asyncio.create_task(
                self.client.acquire(LeaseRequest(f"{prefix}{index}", model, 100, 100))
            )
            for index in range(calls)
        ]
        done, self.waiting = await asyncio.wait(tasks, timeout=wait_s)
        return len(done)


Caller: Any = ray.remote(num_cpus=0)(Process)


def test_two_processes_share_one_limit_exactly(ray_cluster: None) -> None:
    limits = {"main": {"limits": {"*": {"requests_per_minute": 40}}}}
    actor = start("scheduler-limit", accounts=limits)
    ray.get(actor.register.remote([hosted(1000)]))
    callers = [Caller.remote() for _ in range(2)]
    begin_s = time.monotonic()
    took = [
        caller.take.remote(actor, f"p{index}-", 50, HAIKU, 2.0)
        for index, caller in enumerate(callers)
    ]
    granted = sum(ray.get(took))
    refilled = (time.monotonic() - begin_s) * 40 / 60
    assert 40 <= granted <= 40 + refilled + 1
    for each in [*callers, actor]:
        ray.kill(each)


def test_the_death_of_a_process_frees_its_leases(ray_cluster: None) -> None:
    actor = start("scheduler-death", timeout_s=5.0)
    ray.get(actor.register.remote([replica(0, slots=2)]))
    caller = Caller.remote()
    assert ray.get(caller.take.remote(actor, "dead-", 5, "m", 1.0)) == 2
    ray.kill(caller)

    async def survivor() -> dict[str, Any]:
        client = SchedulerClient(actor)
        lease = await asyncio.wait_for(client.acquire(LeaseRequest("c", "m", 100, 100)), 30)
        client.settle(ok(lease))
        await client.close()
        shown: dict[str, Any] = await actor.snapshot.remote()
        return shown

    shown = asyncio.run(survivor())
    assert (shown["inflight"], shown["waiting"], shown["holders"]) == (0, 0, {})
    assert shown["endpoints"]["replica:m:0"]["totals"]["expired"] == 2
    ray.kill(actor)


async def test_a_waiting_call_does_not_hold_up_the_others(ray_cluster: None) -> None:
    actor = start("scheduler-stream")
    await actor.register.remote([replica(0, slots=1), hosted(100)])
    client = SchedulerClient(actor)
    first = await client.acquire(LeaseRequest("a", "m", 100, 100))
    waits = asyncio.create_task(client.acquire(LeaseRequest("b", "m", 100, 100)))
    others = await asyncio.gather(
        *(client.acquire(LeaseRequest(f"h{index}", HAIKU, 100, 100)) for index in range(50))
    )
    assert not waits.done()
    client.settle(ok(first))
    lease = await asyncio.wait_for(waits, 10)
    assert lease.endpoint.name == "replica:m:0"
    for each in [lease, *others]:
        client.settle(ok(each, "0.000001"))
    await client.flush()
    (root,) = await actor.budgets.remote()
    assert (root.reserved_usd, root.spent_usd) == (0, Decimal("0.000050") + Decimal("0.000001"))
    await client.close()
    ray.kill(actor)


async def test_cancelling_a_waiting_call_takes_nothing(ray_cluster: None) -> None:
    actor = start("scheduler-cancel")
    await actor.register.remote([replica(0, slots=1)])
    client = SchedulerClient(actor)
    first = await client.acquire(LeaseRequest("a", "m", 100, 100))
    waits = asyncio.create_task(client.acquire(LeaseRequest("b", "m", 100, 100)))
    await client.flush()
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    client.settle(ok(first))
    await client.flush()
    shown = await actor.snapshot.remote()
    assert (shown["inflight"], shown["waiting"]) == (0, 0)
    await client.close()
    ray.kill(actor)


async def test_a_restarted_scheduler_is_asked_again_and_a_gone_one_is_an_error(
    ray_cluster: None,
) -> None:
    actor = start("scheduler-restart")
    find = lambda: ray.get_actor("scheduler-restart", namespace="agentcloud")  # noqa: E731
    client = SchedulerClient(actor, find=find, reconnect_s=20.0)
    await actor.register.remote([replica(0, slots=1)])
    lost = await client.acquire(LeaseRequest("a", "m", 100, 100))
    waits = asyncio.create_task(client.acquire(LeaseRequest("b", "m", 100, 100)))
    before = await actor.ping.remote()
    await client.flush()
    ray.kill(actor, no_restart=False)
    for _ in range(100):
        try:
            if await actor.ping.remote() != before:
                break
        except ray.exceptions.RayError:
            await asyncio.sleep(0.2)
    await actor.register.remote([replica(0, slots=1)])
    client.settle(ok(lost))
    lease = await asyncio.wait_for(waits, 30)
    assert lease.call_id == "b"
    client.settle(ok(lease))
    await client.flush()
    ray.kill(actor)
    short = SchedulerClient(actor, find=find, reconnect_s=0.5)
    with pytest.raises(ConnectionFailed, match="scheduler is gone"):
        await asyncio.wait_for(short.acquire(LeaseRequest("c", "m", 1, 1)), 30)
    await short.close()
    await client.close()
