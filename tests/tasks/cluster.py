"""A real Ray head of a test's own, as a user starts one, and the command line run against it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
SANDBOX_KEY = "sandbox-of-the-tests"
#: Other tests start their engines beside this.
_START_S = 180.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which must be one JSON document."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Head:
    """A running Ray head."""

    gcs: str
    dashboard: str
    env: dict[str, str]
    folder: Path

    def cli(self, *args: str, cwd: Path, timeout_s: float = 120, address: bool = False) -> Outcome:
        """Run `agentcloud ...` as a user of this cluster does."""
        if address:
            args = (*args, "--address", self.gcs)
        return cli(*args, cwd=cwd, env=self.env, timeout_s=timeout_s)


def clean_env(**more: str) -> dict[str, str]:
    """This process's environment without anything that names a cluster or a key."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ANTHROPIC_"))}
    # A job's entry point is `python`, found on the head's PATH.
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    return env | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "default"} | more


def cli(*args: str, cwd: Path, env: dict[str, str], timeout_s: float = 120) -> Outcome:
    """Run the installed `agentcloud` command."""
    done = subprocess.run(
        [str(BIN / "agentcloud"), *args],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _ray_start(env: dict[str, str], *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", "--num-cpus=4"),
            *(f"--object-store-memory={200 << 20}", *more),
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def ray_head(
    *,
    token: bool = True,
    wait: bool = True,
    node_types: dict[str, Any] | None = None,
    **more_env: str,
) -> Iterator[Head]:
    """`ray start --head` in a session folder and on ports of its own; ended by its own group.

    With `node_types` Ray's autoscaler runs, over its fake provider: nodes are raylets on this
    machine. (Ray's own `AutoscalingCluster` calls `ray stop`, which would end everybody's Ray.)
    """
    # Short: Ray puts Unix sockets below it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ac"))
    gcs, dashboard, agent, agent_grpc, metrics, client = free_ports(6)
    auth = {"RAY_AUTH_MODE": "disabled"}
    if token:
        path = folder / "token"
        path.write_text(secrets.token_hex(32))
        path.chmod(0o600)
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    env = clean_env(**auth, SANDBOX_KEY=SANDBOX_KEY, **more_env)
    more: list[str] = []
    if node_types is not None:
        (folder / "autoscaler.json").write_text(json.dumps(_autoscaling(node_types, gcs)))
        more.append(f"--autoscaling-config={folder}/autoscaler.json")
        env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    process = _ray_start(
        env,
        "--head", f"--port={gcs}", f"--temp-dir={folder}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}", *more,
    )  # fmt: skip
    try:
        _wait_for_port(process, dashboard)
        head = Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", env, folder)
        if wait:
            _wait_until_it_answers(head, folder)
        yield head
    finally:
        _end_group(process)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_node(head: Head) -> Iterator[subprocess.Popen[str]]:
    """`ray start --address`: a second node of a head's cluster, on this machine.

    Its folder is its own, as another machine's is: in a common one the second node that fetches a
    job's working folder takes it away from under the first's processes, and puts it there again.
    """
    folder = tempfile.mkdtemp(prefix="ac")
    process = _ray_start(head.env, f"--address={head.gcs}", f"--temp-dir={folder}")
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise RuntimeError(f"the node did not start: {''.join(said)[-2000:]}")
        yield process
    finally:
        _end_group(process)
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaling(node_types: dict[str, Any], gcs: int) -> dict[str, Any]:
    """A cluster file for the fake provider; idle nodes leave after 3 s."""
    head = {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0}
    lists = (
        *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
        *("setup_commands", "head_setup_commands", "worker_setup_commands"),
        *("head_start_ray_commands", "worker_start_ray_commands"),
    )
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{gcs}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {"ray.head.default": head, **node_types},
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in lists},
    }


def _wait_for_port(process: subprocess.Popen[str], port: int) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    said = process.stdout.read() if process.poll() is not None and process.stdout else ""
    raise RuntimeError(f"ray start did not come up: {said[-2000:]}")


def _wait_until_it_answers(head: Head, folder: Path) -> None:
    # On a busy machine the control store listens before it takes clients.
    deadline_s = time.monotonic() + _START_S
    while "no Ray cluster is there" in (said := head.cli("down", cwd=folder, address=True).err):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the head does not answer: {said}")


def _end_group(process: subprocess.Popen[str]) -> None:
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Workers have sessions of their own; they end with their raylet, these are the stragglers.
    _gone, alive = psutil.wait_procs(children, timeout=5)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()
