"""Connecting to a cluster: a scheduler actor in a real Ray, the sandbox behind it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.connect import connect, endpoint_opener
from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sandbox import Sandbox
from agentcloud.cluster.scheduler_actor import start_scheduler
from tests.cluster.serving import CANARY, HAIKU, KEY_ENV, PARAMS, fleet

pytestmark = pytest.mark.ray


@pytest.fixture
def no_scheduler(ray_cluster: None) -> Iterator[None]:
    """The run's Ray, its scheduler ended afterwards."""
    yield
    try:
        ray.kill(ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE))
    except ValueError:
        return  # The test started none.


async def test_a_call_through_the_clusters_scheduler(
    no_scheduler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, CANARY)
    async with Sandbox() as sandbox:
        config = fleet(sandbox.url)
        actor = start_scheduler(config)
        await actor.register.remote(hosted_specs(config))
        async with AsyncAgentCloud() as client:
            message = await client.messages.create(**PARAMS)
            assert message.agentcloud.endpoint == f"main/{HAIKU}"
            inference = await client.inference()
            assert inference.config == config
        snapshot: dict[str, Any] = await actor.snapshot.remote()
        endpoint = snapshot["endpoints"][f"main/{HAIKU}"]
        assert (endpoint["inflight"], endpoint["totals"]["ok"]) == (0, 1)


async def test_a_ray_without_agentcloud_is_one_clear_error(no_scheduler: None) -> None:
    with pytest.raises(ConfigError, match=r"no agentcloud runs on the Ray cluster.*agentcloud up"):
        await connect()


def test_no_cluster_is_one_clear_error() -> None:
    program = (
        "import asyncio\n"
        "from agentcloud.cluster.client import AsyncAgentCloud\n"
        "from agentcloud.cluster.errors import ConfigError\n"
        "try:\n"
        "    client = AsyncAgentCloud(address='127.0.0.1:1')\n"
        "    asyncio.run(client.messages.create(model='m', max_tokens=1, messages=[]))\n"
        "except ConfigError as error:\n"
        "    print('said:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("said:")]
    assert "127.0.0.1:1" in line


def test_an_endpoint_of_an_unknown_account_names_it() -> None:
    config = fleet("http://127.0.0.1:1")
    (spec,) = hosted_specs(config)
    other = parse_fleet(
        {"accounts": {"b": {}}, "hosted": {HAIKU: {"account": "b"}}}, where="fleet.yaml"
    )
    with pytest.raises(ConfigError, match=r"accounts: main/claude-haiku-4-5 names account 'main'"):
        endpoint_opener(other)(spec)
