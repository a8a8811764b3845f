"""Looks for the API key wherever a cluster leaves anything: there must be none."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Final

from tests.faults.job_world import World
from tests.tasks.cluster import BIN

#: What `ray list` lists.
LISTINGS: Final = (
    *("actors", "tasks", "jobs", "workers", "nodes", "objects", "placement-groups"),
    *("runtime-envs", "cluster-events"),
)
#: How often a listing is asked for.
TRIES: Final = 5


def leaks(world: World) -> list[str]:
    """Where the key was found, after jobs have run: files, metrics, listings."""
    key = world.head.env["SANDBOX_KEY"].encode()
    places = {**_metrics(world), **_listings(world)}
    found = [name for name, said in places.items() if key in said]
    return found + [str(path) for path in _files(world) if key in path.read_bytes()]


def _files(world: World) -> list[Path]:
    # Logs, results, job records, databases. Sockets and pipes have nothing to read.
    tops = (world.folder, world.head.folder)
    return [path for top in tops for path in top.rglob("*") if path.is_file()]


def _metrics(world: World) -> dict[str, bytes]:
    (path,) = world.head.folder.glob("session_2*/prom_metrics_service_discovery.json")
    targets = [target for each in json.loads(path.read_text()) for target in each["targets"]]
    if not targets:
        raise RuntimeError("Ray exports no metrics")
    said = {}
    for target in targets:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as reply:
            said[f"metrics of {target}"] = reply.read()
    return said


def _listings(world: World) -> dict[str, bytes]:
    # Where a machine was lost Ray fails to list these.
    left_out = {"cluster-events"} if world.has_node else set[str]()
    asked = [what for what in LISTINGS if what not in left_out]
    return {f"ray list {what}": _listing(world, what) for what in asked}


def _listing(world: World, what: str) -> bytes:
    command = [
        *(str(BIN / "ray"), "list", what, "--address", world.head.dashboard),
        *("--detail", "--format=json", "--limit=10000"),
    ]
    for _ in range(TRIES):
        # The dashboard of a machine that has worked for an hour may be too slow to answer.
        done = subprocess.run(
            command, env=world.head.env, capture_output=True, check=False, timeout=120
        )
        if done.returncode == 0:
            return done.stdout
    raise RuntimeError(f"ray list {what}: {done.stderr.decode()[-500:]}")
