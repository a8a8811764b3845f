"""Run by test_autoscaling_ray.py against a Ray with its autoscaler: the real scheduler and fleet.

On its fake nodes no engine can run: what stands in each placement group is a light actor. All else
is real: requests wait at the scheduler, the fleet asks for placement groups, Ray adds nodes.
Prints one JSON object of what was seen.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import FLEET_NAME, RAY_NAMESPACE, LeaseRequest, LoadReport
from agentcloud.cluster.fleet import FleetActor
from agentcloud.cluster.fleet_status import FleetStatus
from agentcloud.cluster.lifecycle import connect_ray, down
from agentcloud.cluster.replica_wire import ReplicaInfo
from agentcloud.cluster.scheduler_actor import start_scheduler
from agentcloud.cluster.scheduler_client import SchedulerClient
from agentcloud.cluster.scheduler_local import unused

LIMIT_S = 120.0
KEYS = {"path": "embedded:triage-small", "context_tokens": 1024, "kv_cache_gib": 0.0625}
FLEET = {
    "models": {
        # Two stages of four GPUs: two nodes. And one that is there all along, without any.
        "big": {
            **KEYS,
            "tier": "large",
            "gpu": "H100-80G",
            "tensor_parallel": 4,
            "pipeline_parallel": 2,
            "gpus_per_node": 4,
            "replicas": {"min": 0, "max": 1},
            "usd_per_gpu_hour": "2.50",
        },
        "small": {**KEYS, "replicas": {"min": 1, "max": 2}},
        # No node type has this: it is asked for, given up, asked for again.
        "odd": {**KEYS, "tier": "odd", "resources": {"unobtainium": 1}, "replicas": {"max": 1}},
    },
    "scaling": {"every_s": 0.25, "keep_s": 4, "start_s": 1, "pending_s": 6, "drain_s": 60},
    "health": {"report_s": 0.1},
}


class Light:
    """Stands where a replica would: it starts nothing and says where it is."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def ready(self) -> ReplicaInfo:
        node = ray.get_runtime_context().get_node_id()
        return ReplicaInfo(self._name, "light", 1024, 0, node, 0.0)

    async def report(self, *, anew: bool) -> tuple[LoadReport, None]:
        return LoadReport(), None

    async def shutdown(self) -> None:
        """Nothing was started."""


def start_light(name: str, _engine: Any, **options: Any) -> Any:
    options = {"lifetime": "detached", "num_cpus": 0, **options}
    return ray.remote(Light).options(name=name, namespace=RAY_NAMESPACE, **options).remote(name)


class Watcher:
    """The fleet's status, over and over, until something is seen."""

    def __init__(self, fleet: Any) -> None:
        self._fleet = fleet
        self.lines: list[str] = []
        self.restarts: dict[str, int] = {}

    def until(self, what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end_s = time.monotonic() + LIMIT_S
        while time.monotonic() < end_s:
            status: FleetStatus = ray.get(self._fleet.status.remote())
            line = status.one_line()
            if line not in self.lines:
                self.lines.append(line)
            self.restarts = {each.name: each.restarts for each in status.replicas}
            models = {each.model: each for each in status.models}
            if holds(models):
                return models
            time.sleep(0.1)
        raise TimeoutError(f"never seen: {what}; last: {line}; gpu nodes: {gpu_nodes()}")


def gpu_nodes() -> list[str]:
    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]


async def main(address: str) -> dict[str, Any]:
    connect_ray(address)
    config = parse_fleet(FLEET)
    scheduler = start_scheduler(config)
    fleet = FleetActor.options(
        name=FLEET_NAME, namespace=RAY_NAMESPACE, lifetime="detached", num_cpus=0
    ).remote(config, "fleet.yaml", start_light)
    ray.get(fleet.start.remote(), timeout=60)
    watcher = Watcher(fleet)
    seen: dict[str, Any] = {}

    async def watch(what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return await asyncio.to_thread(watcher.until, what, holds)

    await watch("small", lambda m: m["small"].running == 1)
    seen["gpu_nodes_before"] = len(gpu_nodes())

    client = SchedulerClient(scheduler)
    waits = asyncio.create_task(client.acquire(LeaseRequest("big", "large", 10, 10)))
    odd = asyncio.create_task(client.acquire(LeaseRequest("odd", "odd", 10, 10)))
    pending = await watch("pending", lambda m: m["big"].pending == 1)
    seen["reason"] = pending["big"].reason
    lease = await asyncio.wait_for(client.acquire(LeaseRequest("s", "small", 10, 10)), 10)
    seen["meanwhile"] = lease.endpoint.name
    client.settle(unused(lease))
    lease = await asyncio.wait_for(waits, LIMIT_S)
    seen["lease"], seen["queued_s"] = lease.endpoint.name, lease.queued_s
    tables = placement_group_table().values()
    (table,) = [t for t in tables if t["name"] == lease.endpoint.name and t["state"] == "CREATED"]
    homes = table["bundles_to_node_id"]
    # A node that came though it was not needed in the end holds none.
    counts = [list(homes.values()).count(node) for node in gpu_nodes()]
    seen["ranks_by_node"] = sorted(count for count in counts if count)
    seen["stages_split"] = any(len({homes[r + i] for i in range(4)}) > 1 for r in (0, 4))
    # Its call runs on while it is drained: it ends only then.
    scaled = asyncio.ensure_future(fleet.scale.remote("big", 0))
    await watch("draining", lambda m: m["big"].draining == 1)
    await asyncio.sleep(1.0)
    seen["ended_before_its_call"] = scaled.done()
    client.settle(unused(lease))
    await client.flush()
    await watch("drained", lambda m: not m["big"].draining)
    await asyncio.wait_for(scaled, LIMIT_S)

    def asked_again(models: dict[str, Any]) -> bool:
        return watcher.restarts.get("replica:odd:0", 0) > 0 and models["odd"].pending == 1

    await watch("asked for room again", asked_again)
    seen["odd_waits"] = not odd.done()
    odd.cancel()
    await watch("given up", lambda m: not m["odd"].pending and not m["odd"].target)
    await watch("nodes gone", lambda _models: not gpu_nodes())
    seen["lines"] = watcher.lines
    await asyncio.gather(odd, return_exceptions=True)
    await client.close()
    down()
    seen["groups_left"] = [t for t in placement_group_table().values() if t["state"] != "REMOVED"]
    ray.shutdown()
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1])), default=str))
