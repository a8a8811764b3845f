"""How the long-lived actors of the head's machine are started: they keep files there."""

from __future__ import annotations

from typing import Any, Final

import ray

from agentcloud.cluster.contracts import RAY_NAMESPACE

#: Ray's own resource of the head's machine.
_HEAD: Final = "node:__internal_head__"
#: Calls that wait (for the disk, for news, as streams) each take one of these.
_MAX_CALLS: Final = 100_000


def start_on_head(actor: Any, name: str, /, *arguments: Any, **settings: Any) -> Any:
    """Start an actor, detached and restarted by Ray; or find the running one of its name.

    It stays on the head's machine, where its files are, also after a restart.

    Args:
        actor: the class, as `ray.remote` made it.
        name: in our namespace.
        arguments: for the class.
        settings: for the class too.
    """
    # Where Ray names no head, any machine does.
    resources = {_HEAD: 0.001} if _HEAD in ray.cluster_resources() else None
    return actor.options(
        name=name,
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=_MAX_CALLS,
        num_cpus=0,
        resources=resources,
    ).remote(*arguments, **settings)
