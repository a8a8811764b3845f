"""A whole path for tests: client -> inference -> the scheduler's core -> hosted -> a sandbox."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from agentcloud.cluster.batch_client import BatchClient, BatchEndpoint
from agentcloud.cluster.batch_wire import BatchPort
from agentcloud.cluster.cache_client import CacheClient
from agentcloud.cluster.cache_wire import CachePort
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import Clock, FakeClock, SystemClock
from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.contracts import (
    EndpointSpec,
    Lease,
    LeaseRequest,
    Settlement,
)
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.hosted import HostedEndpoint
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.local import LocalEndpoint
from agentcloud.cluster.ports import Endpoint
from agentcloud.cluster.sandbox import Sandbox, SandboxConfig
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.cluster.scheduler_local import LocalScheduler

T = TypeVar("T")

#: A key that must never be seen in an error, a log line or a repr.
CANARY = "sandbox-canary-9f31c7"
KEY_ENV = "AGENTCLOUD_TEST_KEY"
HAIKU = "claude-haiku-4-5"
PARAMS: dict[str, Any] = {
    "model": HAIKU,
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Sort this ticket."}],
}


class Watched(LocalScheduler):
    """The real core, remembering what it was told."""

    def __init__(self, core: SchedulerCore) -> None:
        super().__init__(core)
        self.asked: list[LeaseRequest] = []
        self.leases: list[Lease] = []
        self.settled: list[Settlement] = []

    async def acquire(self, request: LeaseRequest) -> Lease:
        self.asked.append(request)
        lease = await super().acquire(request)
        self.leases.append(lease)
        return lease

    def turn(self) -> None:
        """Look at the clock, as its timer would."""
        self._turn()

    def settle(self, settlement: Settlement) -> None:
        self.settled.append(settlement)
        super().settle(settlement)


@dataclass
class Served:
    """Everything of one test's path."""

    sandbox: Sandbox
    config: FleetConfig
    scheduler: Watched
    inference: Inference
    clock: Clock

    @property
    def sends(self) -> int:
        """Calls that the sandbox got."""
        return len(self.sandbox.calls)

    def slept_s(self) -> list[float]:
        """What the calls waited between sends."""
        assert isinstance(self.clock, FakeClock)
        return self.clock.slept_s

    async def with_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work` while a fake clock runs a second ahead at every look."""
        assert isinstance(self.clock, FakeClock)
        task = asyncio.create_task(work)
        async with asyncio.timeout(20):
            while not task.done():
                await asyncio.wait([task], timeout=0.02)
                if self.scheduler.core.waiting:
                    self.clock.advance(1.0)
                    self.scheduler.turn()
        return task.result()


def fleet(
    url: str, wire: str = "stream", limits: dict[str, Any] | None = None, **changes: Any
) -> FleetConfig:
    """One account at the sandbox, two models of it."""
    account = {"base_url": url, "api_key_env": KEY_ENV, "wire": wire, "limits": limits or {}}
    data: dict[str, Any] = {
        "accounts": {"main": account},
        "hosted": {HAIKU: {"account": "main"}},
        "aliases": {"claude-sonnet-4-*": HAIKU},
        "retry": {"base_s": 0.5, "max_attempts": 4},
    }
    return parse_fleet(data | changes)


@asynccontextmanager
async def serving(
    monkeypatch: pytest.MonkeyPatch,
    sandbox_config: SandboxConfig | None = None,
    *,
    clock: Clock | None = None,
    local: EndpointSpec | None = None,
    batches: BatchPort | None = None,
    url: str | None = None,
    cache: CachePort | None = None,
    **changes: Any,
) -> AsyncIterator[Served]:
    """Serve, by the running replica `local` too; afterwards no lease or money may be held.

    `batches` sends batches, to the server at `url`; `cache` may answer.
    """
    monkeypatch.setenv(KEY_ENV, CANARY)
    clock = clock or SystemClock()
    async with Sandbox(sandbox_config) as sandbox:
        config = fleet(url or sandbox.url, **changes)
        core = SchedulerCore(
            config, load_catalog().with_overrides(config.hosted), clock, random.Random(1)
        )
        core.register([*hosted_specs(config), *([local] if local else [])])
        scheduler = Watched(core)

        def opened(spec: EndpointSpec) -> Endpoint:
            if spec.account is None:
                return LocalEndpoint(spec)
            direct = HostedEndpoint(spec, config.accounts[spec.account])
            if spec.batch:
                assert batches is not None
                return BatchEndpoint(spec, BatchClient(batches, beat_s=0.02), direct)
            return direct

        inference = Inference(
            scheduler,
            opened,
            config,
            clock,
            rng=random.Random(2),
            cache=CacheClient(cache) if cache else None,
        )
        try:
            yield Served(sandbox, config, scheduler, inference, clock)
        finally:
            await inference.close()
        granted = [lease.lease_id for lease in scheduler.leases]
        settled = [settlement.lease_id for settlement in scheduler.settled]
        assert sorted(granted) == sorted(settled), "every lease is settled exactly once"
        assert core.inflight == 0
        assert core.waiting == 0
        assert all(budget.reserved_usd == 0 for budget in core.budgets())


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something that another task does has happened."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the sandbox tells no event
            await asyncio.sleep(0.005)
