"""`agentcloud doctor`: what is wrong with the cluster."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import ray
import requests

from agentcloud.cluster import lifecycle
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME
from agentcloud.cluster.errors import AgentCloudError, ConfigError
from agentcloud.cluster.launch import degrees_of
from agentcloud.cluster.placement import NodeGpus
from agentcloud.cluster.placement_ray import ray_nodes
from agentcloud.tasks.doctor import Check, check_ports, fail, ok, warn

#: A healthy node answers a tiny task within this, seconds (its first starts a worker).
NODE_TIMEOUT_S = 60.0


def check_cluster(address: str | None, config: FleetConfig | None = None) -> list[Check]:
    """Reachable, token authentication on, the same versions everywhere, the fleet alive.

    With a fleet's `config`, also whether `up` could place each of its local models.
    """
    try:
        info = lifecycle.connect_ray(address)
    except ConfigError as error:
        if address or os.environ.get("RAY_ADDRESS"):
            return [fail("cluster", str(error), "start it, or name another with --address")]
        return [
            ok("cluster", "none runs here; `agentcloud run` starts one of its own"),
            check_ports(),
            *check_plans(config, None),
        ]
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [
            ok("cluster", f"{info.address}, {len(nodes)} nodes"),
            check_token(info.dashboard_url),
            check_versions(nodes),
            *check_fleet_actors(),
            *check_plans(config, ray_nodes()),
        ]
    finally:
        ray.shutdown()


def check_plans(config: FleetConfig | None, nodes: list[NodeGpus] | None) -> list[Check]:
    """What `up` would refuse of each local model, before anything is loaded.

    Args:
        config: the fleet; None: its file is no good, which was said already.
        nodes: the cluster's; None: there is no cluster, so models on GPUs cannot be planned.
    """
    checks: list[Check] = []
    for name, model in (config.models if config else {}).items():
        check = f"plan of {name}"
        if model.gpu is not None and nodes is None:
            checks.append(warn(check, f"no cluster to find {model.gpu} on", "doctor --address ..."))
            continue
        try:
            split = degrees_of(name, model, nodes or [])
        except AgentCloudError as error:
            checks.append(fail(check, str(error), "mend that, or take the model out"))
        else:
            degrees = f"tensor {split.tensor_parallel}, pipeline {split.pipeline_parallel}"
            checks.append(ok(check, f"fits: {degrees}"))
    return checks


def check_token(dashboard_url: str | None) -> Check:
    """Whether Ray's job API refuses a caller without a token: open, it runs anyone's code."""
    name = "token authentication"
    if dashboard_url is None:
        return warn(name, "no dashboard to ask", "start Ray with its dashboard")
    try:
        status = requests.get(f"{dashboard_url}/api/jobs/", timeout=10).status_code
    except requests.RequestException as error:
        return warn(name, f"the dashboard does not answer ({error})", "look at dashboard.log")
    if status in (401, 403):
        return ok(name, "on: a caller without a token is refused")
    return fail(
        name,
        f"off: {dashboard_url} takes jobs from anyone who reaches it",
        "ray get-auth-token --generate, then start every node with RAY_AUTH_MODE=token",
    )


def check_versions(nodes: list[dict[str, Any]]) -> Check:
    """Whether every node runs what this machine runs."""
    here = versions()
    ask = ray.remote(versions)
    asked = {
        node["NodeManagerAddress"]: ask.options(
            num_cpus=0,
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node["NodeID"], soft=False
            ),
        ).remote()
        for node in nodes
    }
    odd: list[str] = []
    for name, ref in asked.items():
        try:
            there = ray.get(ref, timeout=NODE_TIMEOUT_S)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            odd.append(f"{name} does not answer ({type(error).__name__})")
            continue
        odd += [
            f"{name} has {package} {there[package]}, here it is {mine}"
            for package, mine in here.items()
            if there[package] != mine
        ]
    if odd:
        return fail("versions", "; ".join(odd), "install the same release on every node")
    return ok("versions", ", ".join(f"{package} {version}" for package, version in here.items()))


def versions() -> dict[str, str]:
    """What must be equal on every node."""
    found = {"python": platform.python_version()}
    for package in ("agentcloud", "ray", "anthropic"):
        found[package] = importlib.metadata.version(package)
    return found


def check_fleet_actors() -> list[Check]:
    """Whether the scheduler answers and every replica serves."""
    if not lifecycle.is_up():
        return [warn("fleet", "none is up", "agentcloud up")]
    try:
        scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
        ray.get(scheduler.ping.remote(), timeout=10)
    except (ValueError, ray.exceptions.RayError) as error:
        return [
            fail(
                "scheduler",
                f"does not answer ({type(error).__name__})",
                "agentcloud down, then agentcloud up",
            )
        ]
    checks = [ok("scheduler", "answers")]
    try:
        status = lifecycle.fleet_status()
    except (ConfigError, ray.exceptions.RayError) as error:
        return [*checks, fail("fleet", str(error), "agentcloud down, then agentcloud up")]
    if status.serves():
        checks.append(ok("fleet", status.one_line()))
    else:
        checks.append(warn("fleet", status.one_line(), "agentcloud endpoints shows each replica"))
    return checks
