"""Replicas that run on the cluster already: taken over by a fleet that goes on, or ended."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping
from typing import Any, Final

import ray
from ray._private.state import actors
from ray.util.placement_group import remove_placement_group

from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.contracts import RAY_NAMESPACE
from agentcloud.cluster.launch import Launched
from agentcloud.cluster.placement_ray import named_groups

#: How names of replicas begin: those of their actors and of their placement groups.
_REPLICA: Final = "replica:"


def adopt_replicas(remembered: Mapping[str, LocalModel]) -> dict[str, Launched]:
    """The remembered replicas whose actors are there, by name; whatever else there is ends.

    One of them may be starting still: its `ready()` waits for it. Of those that are gone nothing
    is left reserved when this returns.
    """
    groups = named_groups(_REPLICA)
    adopted: dict[str, Launched] = {}
    for name, settings in remembered.items():
        actor = _actor(name)
        if actor is not None:
            group = groups.get(name)
            # Its group has a bundle for each rank (reserve.py).
            gpus = group.bundle_count if group is not None and settings.gpu else 0
            adopted[name] = Launched(actor, group, gpus)
    end_replicas(but=adopted)
    return adopted


def end_replicas(*, but: Container[str] = ()) -> None:
    """Kill every replica that a fleet has started, and give back what is reserved for them.

    Fleets start theirs detached: others belong to the process that did, and stay.

    Args:
        but: names of those that stay, too.
    """
    for entry in ray.util.list_named_actors(all_namespaces=True):
        name = entry["name"]
        if entry["namespace"] == RAY_NAMESPACE and name.startswith(_REPLICA) and name not in but:
            actor = _actor(name)
            if actor is not None and actors(actor._actor_id.hex()).get("IsDetached"):
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor)
    for name, group in named_groups(_REPLICA).items():
        if name not in but:
            remove_placement_group(group)


def _actor(name: str) -> Any | None:
    try:
        return ray.get_actor(name, namespace=RAY_NAMESPACE)
    except ValueError:
        return None
