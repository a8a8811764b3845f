"""The scheduler's process is killed in the middle of calls: they go on, and no money is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import ray

from agentcloud.cluster.connect import endpoint_opener
from agentcloud.cluster.contracts import LeaseRequest, Routing
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.sandbox import Answer, Call, Sandbox, SyntheticResponder
from agentcloud.cluster.scheduler_actor import SchedulerActor
from agentcloud.cluster.scheduler_client import SchedulerClient
from agentcloud.cluster.scheduler_local import unused
from agentcloud.cluster.store import open_store
from tests.cluster.serving import CANARY, HAIKU, KEY_ENV, PARAMS, fleet
from tests.conftest import RunningReplica

pytestmark = pytest.mark.ray

NAME = "scheduler-killed"
JOB = ("job:j",)
PAID = Routing(budget=JOB)
LOCAL = Routing(tier="tiny", budget=JOB)


HOSTED = f"main/{HAIKU}"


class Gate(SyntheticResponder):
    """Answers that come when the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def respond(self, call: Call) -> Answer:
        await self.open.wait()
        return await super().respond(call)


def find() -> Any:
    return ray.get_actor(NAME, namespace="agentcloud")


@pytest.fixture
def ended(ray_cluster: None) -> Iterator[None]:
    """Ends the test's scheduler, whatever happened."""
    yield
    with contextlib.suppress(ValueError):  # it ended with its last handle
        ray.kill(find())


async def killed(actor: Any) -> None:
    """Kill the scheduler's process, and wait until Ray has started another."""
    pid = await actor.__ray_call__.remote(lambda _self: os.getpid())
    before = await actor.ping.remote()
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            try:
                if await actor.ping.remote() != before:
                    return
            except ray.exceptions.RayError:
                await asyncio.sleep(0.1)


async def seen(actor: Any, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the scheduler's snapshot shows something."""
    async with asyncio.timeout(20):
        while not holds(await actor.snapshot.remote()):  # noqa: ASYNC110 - it tells no event
            await asyncio.sleep(0.05)


async def test_calls_go_on_and_budgets_are_exact_when_the_scheduler_is_killed(
    replica: RunningReplica, ended: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, CANARY)
    gate = Gate()
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with Sandbox(responder=gate) as sandbox:
        local: dict[str, Any] = {"models": {"tiny": {"path": "x"}}}
        config = fleet(sandbox.url, store=url, fleet_budget_usd="1", **local)
        specs = [*hosted_specs(config), replica.spec]
        actor = SchedulerActor.options(
            name=NAME, namespace="agentcloud", max_restarts=-1, max_concurrency=1000, num_cpus=0
        ).remote(config, fleet="f")
        await actor.register.remote(specs)
        await actor.open_budget.remote(JOB, Decimal("0.5"))
        client = SchedulerClient(actor, find=find, reconnect_s=60.0)
        inference = Inference(client, endpoint_opener(config), config, on_close=client.close)

        def start(count: int, routing: Routing, **more: Any) -> list[asyncio.Task[Any]]:
            return [
                asyncio.create_task(inference.create({**PARAMS, **more}, routing))
                for _ in range(count)
            ]

        gate.open.set()
        quick = await inference.create({**PARAMS, "max_tokens": 1}, PAID)
        gate.open.clear()
        calls = start(12, PAID)
        # Local answers come when they come: one lease is held for certain.
        locals_ = start(4, LOCAL, max_tokens=1500, temperature=0)
        lent = await client.acquire(LeaseRequest("lent", "tiny", 100, 100, routing=LOCAL))
        await seen(actor, lambda shown: shown["endpoints"][HOSTED]["inflight"] == 12)
        states = {state.scope: state for state in await actor.budgets.remote()}
        reserved = states["job:j"].reserved_usd

        await killed(actor)
        calls += start(3, PAID)
        # Nobody has registered an endpoint: the money is back before anything else.
        back = {state.scope: state for state in await actor.budgets.remote()}
        assert back["job:j"].limit_usd == Decimal("0.5")
        assert back["job:j"].spent_usd == back["fleet"].spent_usd == quick.agentcloud.cost_usd
        assert back["job:j"].reserved_usd == reserved
        await actor.register.remote(specs)
        await seen(actor, lambda shown: shown["endpoints"][HOSTED]["inflight"] == 15)
        shown = await actor.snapshot.remote()
        running = 1 + sum(not call.done() for call in locals_)
        assert 1 <= shown["endpoints"][replica.name]["inflight"] <= running

        gate.open.set()
        calls += locals_
        messages = await asyncio.wait_for(asyncio.gather(*calls), 60)
        assert [message.agentcloud.attempts for message in messages] == [1] * 19
        await client.flush()
        shown = await actor.snapshot.remote()
        assert (shown["inflight"], shown["waiting"]) == (1, 0), "`lent` is still open"
        client.settle(unused(lent))
        await client.flush()
        paid = [quick, *messages[:15]]
        spent = sum((message.agentcloud.cost_usd or Decimal(0) for message in paid), Decimal(0))
        for state in await actor.budgets.remote():
            assert (state.spent_usd, state.reserved_usd, state.unknown_usd) == (spent, 0, 0), state
        shown = await actor.snapshot.remote()
        assert {name: each["inflight"] for name, each in shown["endpoints"].items()} == {
            f"main/{HAIKU}": 0,
            replica.name: 0,
        }
        assert len(sandbox.calls) == 16, "nothing was sent twice"
        await inference.close()
    store = open_store(url, "f")
    assert store.load().leases == []
    assert {row.spent_usd for row in store.load().budgets} == {spent}
    store.close()
