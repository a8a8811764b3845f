"""What tests share: one real Ray and one real replica for the whole run.

Every process started under a test inherits a mark in its environment; the end of the run asserts
that none is left.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import ray
from hypothesis import settings

from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.contracts import RAY_NAMESPACE, Call, EndpointKind, EndpointSpec, Feature
from agentcloud.cluster.engine_settings import EngineSettings, engine_settings
from agentcloud.cluster.local import LocalEndpoint
from agentcloud.cluster.replica import start_replica
from agentcloud.cluster.replica_wire import ReplicaInfo
from tests.postgres import BIN, empty_database, postgres
from tests.redis_server import BIN as REDIS
from tests.redis_server import redis_server
from tests.tiny_model import CONTEXT_TOKENS, make_tiny_model

_MARK = "AGENTCLOUD_TEST_RUN"
_LEAVE_S = 15.0

# Before Ray and vllm read them.
os.environ[_MARK] = uuid.uuid4().hex
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="agentcloud-tests-")
os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112 - Ray spells it so
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"


# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


#: Fixtures that start a real Ray or engine.
_REAL = frozenset({"ray_cluster", "replica", "head"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a real Ray, and what runs beside the rest (scripts/test.sh).

    The latter is what needs no engine, and no Ray either or a cluster of its own.
    """
    for item in items:
        if _REAL.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("ray")
        marks = {mark.name for mark in item.iter_markers()}
        has_own = "tests/tasks/" in item.nodeid or "test_job_death" in item.nodeid
        if "engine" not in marks and ("ray" not in marks or has_own):
            item.add_marker("beside")


def marked_processes(mark: str = _MARK, value: str | None = None) -> dict[int, str]:
    """Pid -> command line of every other process that carries a mark in its environment."""
    needle = f"{mark}={value or os.environ[mark]}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            carries = needle in (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue  # it ended meanwhile
        if carries and state != "Z":
            found[int(entry.name)] = command
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll a condition of the real world; whether it came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True)
class RunningReplica:
    """The replica that tests share."""

    name: str
    actor: Any
    info: ReplicaInfo
    settings: EngineSettings
    spec: EndpointSpec


@contextlib.contextmanager
def unmarked() -> Iterator[None]:
    """Processes that are started meanwhile end with their own fixture, be it after Ray's."""
    mark = os.environ.pop(_MARK)
    try:
        yield
    finally:
        os.environ[_MARK] = mark


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real local Ray; its end asserts that no process is left.

    A fresh local Ray switches token authentication on by itself.
    """
    ray.init(
        address="local",
        namespace=RAY_NAMESPACE,
        num_cpus=8,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    gone = wait_until(lambda: not marked_processes(), _LEAVE_S)
    assert gone, f"processes left behind: {marked_processes()}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of one real PostgreSQL, shared by the whole run."""
    if BIN is None:
        pytest.skip("scripts/apt.sh installs postgresql")
    with contextlib.ExitStack() as stack:
        with unmarked():
            url = stack.enter_context(postgres())
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of one real Redis, shared by the whole run."""
    if REDIS is None:
        pytest.skip("scripts/apt.sh installs redis-server")
    with contextlib.ExitStack() as stack:
        with unmarked():
            url = stack.enter_context(redis_server())
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    with empty_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with random weights, the same every time."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def tiny_settings(folder: Path, *, tensor_parallel: int = 1, **keys: Any) -> EngineSettings:
    """Settings of an engine for the tiny model; `keys` are those of fleet.yaml."""
    defaults = {
        "path": str(folder),
        "kv_cache_gib": 0.0625,
        "context_tokens": CONTEXT_TOKENS,
        # Random weights have near ties that bf16's rounding decides by the order of a sum.
        "dtype": "float32",
    }
    model = LocalModel.model_validate(defaults | keys)
    cores = sorted(os.sched_getaffinity(0))
    return engine_settings("tiny", model, tensor_parallel=tensor_parallel, cores=cores)


def local_spec(name: str = "replica:tiny:0") -> EndpointSpec:
    """The tiny model's replica as an endpoint."""
    return EndpointSpec(
        name=name,
        kind=EndpointKind.LOCAL,
        model="tiny",
        tier="small",
        context_tokens=CONTEXT_TOKENS,
        max_output_tokens=CONTEXT_TOKENS,
        max_concurrency=256,
        features=frozenset(
            {
                Feature.TOOLS,
                Feature.FORCED_TOOLS,
                Feature.JSON_SCHEMA,
                Feature.SAMPLING,
                Feature.MEAN_LOGPROB,
            }
        ),
    )


@pytest.fixture(scope="session")
def replica(ray_cluster: None, tiny_model: Path) -> Iterator[RunningReplica]:
    """One replica of the tiny model on the real engine, shared by the whole run."""
    spec = local_spec()
    settings = tiny_settings(tiny_model)
    actor = start_replica(spec.name, settings, detached=False)
    info = ray.get(actor.ready.remote(), timeout=240)
    yield RunningReplica(spec.name, actor, info, settings, spec)
    load = ray.get(actor.load.remote(), timeout=30)
    assert (load.running, load.waiting) == (0, 0), f"calls were left on the replica: {load}"
    ray.get(actor.shutdown.remote(), timeout=60)
    ray.kill(actor)


@pytest_asyncio.fixture
async def local_endpoint(replica: RunningReplica) -> AsyncIterator[LocalEndpoint]:
    """The shared replica as an endpoint, closed after the test."""
    endpoint = LocalEndpoint(replica.spec)
    yield endpoint
    await endpoint.close()


def message_call(
    call_id: str,
    text: str = "hello",
    *,
    max_tokens: int = 8,
    timeout_s: float = 60.0,
    **params: Any,
) -> Call:
    """A call with one user message."""
    messages = [{"role": "user", "content": text}]
    return Call(
        call_id,
        {"model": "tiny", "max_tokens": max_tokens, "messages": messages} | params,
        timeout_s,
    )
