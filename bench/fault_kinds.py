"""What `make faults` breaks, one by one, and the world that each needs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from tests import postgres
from tests.faults.job_world import POINTS, Setting, World
from tests.faults.running_job import CONCURRENCY, RunningJob

#: A database is locked for so long: longer than whoever waits for it waits, seconds.
LOCKED_S: Final = 12.0
#: The disk is full for so long, seconds.
FULL_S: Final = 5.0
#: The hosted model answers nothing but errors for so long, seconds.
OUTAGE_S: Final = 150.0
#: What the hosted model does one after another, and for how long each, seconds.
STORM: Final = (
    *("rate_limit", "overloaded", "stream_error", "cut_mid_stream", "cut_before_headers"),
    *("malformed_sse", "malformed_json"),
)
STORM_S: Final = 2.0
#: More calls than any such while sees.
ALL_CALLS: Final = 100_000
#: Calls that get no answer, and how long one send may take where they do, seconds.
HANGING, SEND_S = 24, 3.0
#: What memory may hold beyond what it holds at the start, before Ray kills; bytes.
MEMORY_ROOM: Final = 3 << 30
#: Names the file that says by how much Python's wall clock is wrong, seconds.
_CLOCK_FILE: Final = "AGENTCLOUD_FAULT_CLOCK"
#: Python runs it first, in every process. (libfaketime would be more thorough, but Ray does not
#: start under it: the sleeps of Python 3.11 fail.)
_WRONG_CLOCK: Final = f"""
import os
import time

_true = time.time


def _wrong() -> float:
    with open(os.environ["{_CLOCK_FILE}"]) as file:
        return _true() + float(file.read() or 0)


time.time = _wrong
"""
Strike = Callable[[World, RunningJob], None]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong under a job.

    Attributes:
        strike: does it.
        setting: the world that it needs.
        job: more for `World.job`.
        starts_engine: an engine has to start again: 3 rounds stand for 10.
    """

    strike: Strike
    setting: Callable[[], AbstractContextManager[Setting]]
    job: dict[str, Any] = field(default_factory=dict)
    starts_engine: bool = False


def kill(kind: str) -> Strike:
    """SIGKILL one process of a kind."""
    return lambda _world, job: job.kill(kind)


def kill_driver(_world: World, job: RunningJob) -> None:
    """SIGKILL the command; then `agentcloud resume`."""
    job.kill_driver()
    job.resume()


def kill_ray(world: World, job: RunningJob) -> None:
    """SIGKILL all of Ray and the command; a new head, a new fleet, and the job goes on."""
    world.kill_ray()
    world.start_ray()
    job.resume()


def kill_node(world: World, _job: RunningJob) -> None:
    """A machine with a worker of the job is gone."""
    world.kill_node()


def at(point: str) -> Strike:
    """SIGKILL whoever reaches a point next."""
    return lambda world, _job: world.arm(point)


def lock(world: World, _job: RunningJob) -> None:
    """Another process holds the write locks of both databases."""
    with (
        closing(sqlite3.connect(world.folder / "store.db")) as store,
        closing(sqlite3.connect(world.folder / "store-ledger.db")) as ledger,
    ):
        for each in (store, ledger):
            each.execute("BEGIN IMMEDIATE")
        time.sleep(LOCKED_S)


def fill_disk(world: World, _job: RunningJob) -> None:
    """Not one byte more fits where the databases are, for a while."""
    filler = Path(world.store.removeprefix("sqlite:///")).with_name("filler")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    time.sleep(FULL_S)
    filler.unlink()


def storm(world: World, _job: RunningJob) -> None:
    """Refusals, overload inside streams, cut connections and broken bodies, one after another."""
    for kind in STORM:
        world.go_wrong(kind, ALL_CALLS)
        time.sleep(STORM_S)
        world.go_right()


def hang(world: World, _job: RunningJob) -> None:
    """Calls get no answer, streams stop in their middle; both stay open."""
    world.go_wrong("hang", HANGING // 2)
    world.go_wrong("hang_mid_stream", HANGING // 2)


def outage(world: World, _job: RunningJob) -> None:
    """Every call of minutes fails."""
    world.go_wrong("overloaded", ALL_CALLS)
    time.sleep(OUTAGE_S)
    world.go_right()


def restart_postgres(world: World, _job: RunningJob) -> None:
    """The database server crashes and starts again."""
    postgres.restart(world.store)


def fill_memory(world: World, _job: RunningJob) -> None:
    """Something else takes the machine's memory until Ray's memory monitor kills a worker."""
    before, taken = set(world.pids("worker")), []
    deadline_s = time.monotonic() + 60
    while before <= set(world.pids("worker")):
        if time.monotonic() > deadline_s:
            raise RuntimeError("Ray killed no worker of the job")
        if psutil.virtual_memory().available > 1 << 30:
            taken.append(b"x" * (256 << 20))


def jump_clocks(world: World, job: RunningJob) -> None:
    """What `time.time()` says in every process goes an hour forward, two back, then right."""
    clock = Path(world.head.env[_CLOCK_FILE])
    for wrong_s in ("3600", "-3600", "0"):
        clock.write_text(wrong_s)
        job.until(job.lines() + CONCURRENCY)


@contextlib.contextmanager
def _plain() -> Iterator[Setting]:
    yield Setting()


@contextlib.contextmanager
def _small_disk() -> Iterator[Setting]:
    # A disk of its own, which a file can fill; it takes a mount.
    folder = tempfile.mkdtemp(prefix="agentcloud-disk-")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", folder], check=True)
    try:
        yield Setting(store=f"sqlite:///{folder}/store.db")
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        Path(folder).rmdir()


@contextlib.contextmanager
def _on_postgres() -> Iterator[Setting]:
    with postgres.postgres() as url:
        yield Setting(store=url)


@contextlib.contextmanager
def _impatient() -> Iterator[Setting]:
    yield Setting(fleet={"retry": {"timeout_s": SEND_S}})


@contextlib.contextmanager
def _two_nodes() -> Iterator[Setting]:
    yield Setting(has_node=True)


@contextlib.contextmanager
def _with_engine() -> Iterator[Setting]:
    yield Setting(has_local_model=True)


@contextlib.contextmanager
def _little_memory() -> Iterator[Setting]:
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + MEMORY_ROOM) / memory.total
    env = {"RAY_memory_usage_threshold": f"{share:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    yield Setting(env=env)


@contextlib.contextmanager
def _own_clock() -> Iterator[Setting]:
    with tempfile.TemporaryDirectory(prefix="agentcloud-clock-") as folder:
        clock = Path(folder) / "clock"
        clock.write_text("0")
        (Path(folder) / "sitecustomize.py").write_text(_WRONG_CLOCK)
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        yield Setting(env={_CLOCK_FILE: str(clock), "PYTHONPATH": path})


FAULTS: Final[dict[str, Fault]] = {
    "none": Fault(lambda _world, _job: None, _plain),
    **{
        kind: Fault(kill(kind), _plain)
        for kind in ("worker", "supervisor", "scheduler", "ledger", "fleet")
    },
    "driver": Fault(kill_driver, _plain),
    "all-of-ray": Fault(kill_ray, _plain),
    "all-of-ray-submitted": Fault(kill_ray, _plain, {"submitted": True}),
    **{point: Fault(at(point), _plain) for point in POINTS},
    # A storm, or an outage, may strike one task many times over.
    "hosted-storm": Fault(storm, _plain, {"attempts": "10", "extra-attempts": "100"}),
    "hosted-outage": Fault(outage, _plain),
    "hosted-hang": Fault(hang, _impatient),
    "locked-database": Fault(lock, _plain),
    "disk-full": Fault(fill_disk, _small_disk),
    "postgres-restart": Fault(restart_postgres, _on_postgres),
    "clock-jump": Fault(jump_clocks, _own_clock),
    "memory": Fault(fill_memory, _little_memory),
    # Ray spreads actors by chance: of six workers the second machine has some.
    "node-lost": Fault(kill_node, _two_nodes, {"submitted": True, "workers": "6"}),
    "replica": Fault(kill("replica"), _with_engine, {"agent": "three_local"}, starts_engine=True),
}
