"""A whole fleet in this process, all of it real: client, inference, scheduler, HTTP, sandbox."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.clock import FakeClock, SystemClock
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.connect import endpoint_opener
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.sandbox import Sandbox, SandboxConfig
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.cluster.scheduler_local import LocalScheduler
from tests.agents.mcp_processes import Running

SMALL, LARGE = "claude-haiku-5-5", "claude-sonnet-5-5"


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    config = SandboxConfig(aliases={"claude-sonnet-4-20250514": LARGE})
    async with Sandbox(config) as running:
        yield running


@pytest_asyncio.fixture
async def scheduler(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> LocalScheduler:
    monkeypatch.setenv("SANDBOX_KEY", "sandbox-agents")
    config = parse_fleet(
        {
            "accounts": {"main": {"base_url": sandbox.url, "api_key_env": "SANDBOX_KEY"}},
            "hosted": {
                SMALL: {"account": "main", "tier": "small"},
                LARGE: {"account": "main", "tier": "large"},
            },
            "aliases": {"claude-sonnet-4-*": "large"},
        }
    )
    core = SchedulerCore(
        config, load_catalog().with_overrides(config.hosted), SystemClock(), random.Random(0)
    )
    core.register(hosted_specs(config))
    return LocalScheduler(core)


@pytest_asyncio.fixture
async def client(scheduler: LocalScheduler) -> AsyncIterator[AsyncAgentCloud]:
    config = scheduler.core.config
    # A fake clock for backoffs only: HTTP and the scheduler run in real time.
    inference = Inference(scheduler, endpoint_opener(config), config, FakeClock())
    async with AsyncAgentCloud(inference) as connected:
        yield connected
    await inference.close()
    assert scheduler.core.inflight == 0


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    """A real MCP server over HTTP on loopback."""
    server = Running()
    await server.start()
    yield server
    await server.kill()
