"""Bring the whole of it up and down: the ledger, and with it scheduler and fleet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import ray

from agentcloud.cluster import lifecycle
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.lifecycle import UpInfo
from agentcloud.tasks.ledger_actor import start_ledger
from agentcloud.tasks.ledger_client import find_ledger


def up(
    config: FleetConfig,
    *,
    where: str = "fleet.yaml",
    on_progress: Callable[[str], None] = lambda _line: None,
) -> UpInfo:
    """As `lifecycle.up`, with a ledger for jobs.

    Raises:
        ConfigError: as there, or the ledger's database cannot be used; then nothing of it is left
            running, and what ran before runs on.
    """
    was_up = lifecycle.is_up()
    start_ledger(config.store)  # first: what is wrong with it costs no start of an engine
    try:
        return lifecycle.up(config, where=where, on_progress=on_progress)
    except BaseException:
        if not was_up:
            _end_ledger()
        raise


def down() -> bool:
    """As `lifecycle.down`, and the ledger."""
    was_up = lifecycle.down()
    _end_ledger()
    return was_up


def _end_ledger() -> None:
    # What it has said is on the disk.
    with contextlib.suppress(ConfigError, ray.exceptions.RayError):
        ray.kill(find_ledger())
