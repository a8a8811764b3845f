"""A job's surroundings on this machine: a cluster to run on, and a clean end on Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import ray

from agentcloud.cluster import lifecycle
from agentcloud.cluster.config import load_fleet
from agentcloud.cluster.endpoints import check_fleet
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.lifecycle import RayInfo
from agentcloud.tasks import fleet_up


@contextlib.contextmanager
def cluster_for_run(
    *,
    address: str | None,
    fleet: Path,
    dashboard: bool,
    on_progress: Callable[[str], None],
) -> Iterator[RayInfo]:
    """A Ray with a fleet.

    Two cases: an address is named (here or in RAY_ADDRESS): use that cluster and leave it as it
    is; none is: start one on this machine and end it afterwards, leaving no process.

    Raises:
        ConfigError: the fleet file is wrong, the cluster is not there, or it has no fleet.
    """
    if address or os.environ.get("RAY_ADDRESS"):
        info = lifecycle.connect_ray(address)
        try:
            if not lifecycle.is_up():
                raise ConfigError(
                    "no fleet is up on this cluster; `agentcloud up` starts one",
                    where=info.address,
                )
            yield info
        finally:
            ray.shutdown()
        return
    config = load_fleet(fleet)
    check_fleet(config, where=str(fleet))  # before seconds go into a Ray for nothing
    on_progress("starting Ray on this machine")
    try:
        info = lifecycle.start_local_ray(dashboard=dashboard)
        fleet_up.up(config, where=str(fleet), on_progress=on_progress)
        yield info
    finally:
        with uninterrupted():
            if ray.is_initialized():
                fleet_up.down()
                ray.shutdown()


class Interrupts:
    """What Ctrl-C (or SIGTERM) did so far."""

    def __init__(self) -> None:
        self.count = 0

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The first is noted, the second no longer waits."""
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


@contextlib.contextmanager
def graceful_interrupts() -> Iterator[Interrupts]:
    """Turn the first Ctrl-C into a note that the caller acts on."""
    interrupts = Interrupts()
    before = {
        number: signal.signal(number, interrupts.on_signal)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C does, so that nothing is left running."""

    def on_term(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Tearing down is not interrupted half-way: it takes seconds."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
