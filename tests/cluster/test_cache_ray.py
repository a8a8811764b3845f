"""One flight over processes: the cache's real actor, its real database, real calls over HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import ray

from agentcloud.cluster import lifecycle
from agentcloud.cluster.cache_actor import (
    bring_cache,
    start_cache,
    stop_cache,
)
from agentcloud.cluster.cache_client import CacheClient
from agentcloud.cluster.cache_port import CacheActorPort, find_cache
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.connect import connect, endpoint_opener
from agentcloud.cluster.contracts import Receipt
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.sandbox import Answer, Call, Sandbox, SyntheticResponder
from agentcloud.cluster.scheduler_actor import SchedulerActor
from agentcloud.cluster.scheduler_client import SchedulerClient
from agentcloud.tasks.cli_metrics import metrics_targets, scrape
from tests.cluster.serving import CANARY, HAIKU, KEY_ENV, PARAMS, fleet
from tests.conftest import wait_until

pytestmark = pytest.mark.ray

#: A process that is silent for so long is dead.
SILENT_S = 10.0


class Gate(SyntheticResponder):
    """Answers that come when the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def respond(self, call: Call) -> Answer:
        await self.open.wait()
        return await super().respond(call)


class Process:
    """A process that calls, with the cache between."""

    def __init__(self, config: FleetConfig, scheduler: Any, cache: str) -> None:
        self.parts = config, scheduler, cache

    async def ask(self, texts: list[str]) -> list[Receipt]:
        """Ask all of it at once, at temperature 0."""
        config, scheduler, cache = self.parts
        client = SchedulerClient(scheduler)
        inference = Inference(
            client,
            endpoint_opener(config),
            config,
            on_close=client.close,
            cache=CacheClient(CacheActorPort(cache)),
        )
        messages = await asyncio.gather(
            *(
                inference.create(
                    {**PARAMS, "temperature": 0, "messages": [{"role": "user", "content": text}]}
                )
                for text in texts
            )
        )
        await inference.close()
        return [message.agentcloud for message in messages]


@dataclass
class Cluster:
    """A scheduler, a cache and processes of a test's own."""

    sandbox: Sandbox
    gate: Gate
    scheduler: Any
    cache: Any
    process: Callable[[], Any]

    async def seen(self, holds: Callable[[dict[str, Any]], bool], actor: Any = None) -> None:
        """Wait until what an actor shows is so."""
        async with asyncio.timeout(60):
            while True:
                try:
                    if holds(await (actor or self.cache).snapshot.remote()):
                        return
                except ray.exceptions.RayError:
                    pass  # It is being restarted.
                await asyncio.sleep(0.05)


@asynccontextmanager
async def cluster(tmp_path: Path, url: str | None = None) -> AsyncIterator[Cluster]:
    gate, name = Gate(), f"cache-{uuid.uuid4().hex[:8]}"
    kept: dict[str, Any] = {} if url is None else {"url": url}
    async with Sandbox(responder=gate) as sandbox:
        config = fleet(sandbox.url, store=f"sqlite:///{tmp_path / 'store.db'}", cache=kept)
        assert config.cache is not None
        scheduler = SchedulerActor.options(max_concurrency=1000, num_cpus=0).remote(config)
        await scheduler.register.remote(hosted_specs(config))
        cache = start_cache(config.cache, config.store, name=name, holder_timeout_s=SILENT_S)
        env = {"env_vars": {KEY_ENV: CANARY}}
        kind: Any = ray.remote(num_cpus=0, runtime_env=env)(Process)
        processes: list[Any] = []

        def process() -> Any:
            processes.append(kind.remote(config, scheduler, name))
            return processes[-1]

        try:
            await cache.ping.remote()
            yield Cluster(sandbox, gate, scheduler, cache, process)
            # Nothing is left under way.
            shown = await cache.snapshot.remote()
            assert (shown["under_way"], shown["waiting"]) == (0, 0)
        finally:
            gate.open.set()
            for each in [*processes, scheduler]:
                ray.kill(each)
            await asyncio.to_thread(stop_cache, name)


def are_exported() -> bool:
    """Whether Ray exports that (at least) 100 calls were sent and 100 shared them."""
    (target,) = metrics_targets()
    calls: Counter[str] = Counter()
    saved_usd = 0.0
    for each in scrape(target):
        if each.labels.get("model") == HAIKU:
            if each.name == "cache_calls_total":
                calls[each.labels["outcome"]] += int(each.value)
            saved_usd += each.value * (each.name == "cache_saved_usd_total")
    return calls["shared"] >= 100 and calls["miss"] >= 100 and saved_usd > 0


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
async def test_two_processes_that_ask_the_same_at_once_send_it_once(
    ray_cluster: None, tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("redis_url") if store == "redis" else None
    texts = [f"Sort ticket {number} of {uuid.uuid4()}." for number in range(100)]
    async with cluster(tmp_path, url) as here:
        work = [here.process().ask.remote(texts) for _ in range(2)]
        await here.seen(lambda shown: shown["waiting"] == 100)
        here.gate.open.set()
        receipts = [receipt for each in await asyncio.gather(*work) for receipt in each]
        assert len(here.sandbox.calls) == 100
        cached = [receipt for receipt in receipts if receipt.cached]
        assert len(cached) == 100
        assert sum(each.cost_usd or 0 for each in cached) == 0
        paid = sum((each.cost_usd or Decimal(0) for each in receipts), Decimal(0))
        assert sum((each.saved_usd or Decimal(0) for each in cached), Decimal(0)) == paid > 0
        assert await asyncio.to_thread(wait_until, are_exported, 30)
        # Later, with the cache's process anew: from what was kept.
        ray.kill(here.cache, no_restart=False)
        await here.seen(lambda shown: shown["misses"] == 0)
        later = await here.process().ask.remote(texts)
        assert all(receipt.cached for receipt in later)
        assert len(here.sandbox.calls) == 100
        shown = await here.cache.snapshot.remote()
        assert (shown["hits"], shown["misses"]) == (100, 0)
        assert Decimal(shown["saved_usd"]) == paid


async def test_where_the_process_that_sends_is_killed_another_sends(
    ray_cluster: None, tmp_path: Path
) -> None:
    async with cluster(tmp_path) as here:
        sender, *others = [here.process() for _ in range(3)]
        lost = sender.ask.remote(["x"])
        await here.seen(lambda shown: shown["under_way"] == 1)
        work = [each.ask.remote(["x"]) for each in others]
        await here.seen(lambda shown: shown["waiting"] == 2)
        async with asyncio.timeout(30):
            while not here.sandbox.calls:  # noqa: ASYNC110 - it tells no event
                await asyncio.sleep(0.02)
        ray.kill(sender)
        with pytest.raises(ray.exceptions.RayActorError):
            await lost
        await here.seen(lambda shown: shown["waiting"] == 1)
        here.gate.open.set()
        receipts = [receipt for each in await asyncio.gather(*work) for receipt in each]
        assert sorted(receipt.cached for receipt in receipts) == [False, True]
        assert len(here.sandbox.calls) == 2


async def test_calls_go_on_when_the_cache_is_killed(ray_cluster: None, tmp_path: Path) -> None:
    async with cluster(tmp_path) as here:
        work = [here.process().ask.remote(["x", "y"]) for _ in range(2)]
        await here.seen(lambda shown: shown["waiting"] == 2)
        ray.kill(here.cache, no_restart=False)
        # The new one is told what is under way by those who wait and those who send.
        await here.seen(
            lambda shown: (shown["misses"], shown["under_way"], shown["waiting"]) == (0, 2, 2)
        )
        # Those that send have said so by now, or will within the time that they have for it.
        here.gate.open.set()
        receipts = [receipt for each in await asyncio.gather(*work) for receipt in each]
        sent = sum(not receipt.cached for receipt in receipts)
        assert sent == len(here.sandbox.calls) == 2


async def test_a_fleet_with_a_cache_comes_up_with_it_and_goes_with_it(
    ray_cluster: None, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(CANARY)
    gate = Gate()
    gate.open.set()
    async with Sandbox(responder=gate) as sandbox:
        store = f"sqlite:///{tmp_path / 'store.db'}"
        account = {"base_url": sandbox.url, "api_key_file": str(key)}
        more: dict[str, Any] = {"accounts": {"main": account}, "cache": {"ttl_s": 60}}
        config = fleet(sandbox.url, store=store, **more)
        await asyncio.to_thread(lifecycle.up, config)
        try:
            inference = await connect()
            params = {**PARAMS, "temperature": 0}
            first, again = [await inference.create(params) for _ in range(2)]
            assert (first.agentcloud.cached, again.agentcloud.cached) == (False, True)
            # Streams do not use it.
            async with inference.stream(params) as events:
                assert [event.type async for event in events][-1] == "message_stop"
            assert len(sandbox.calls) == 2
            await inference.close()
        finally:
            await asyncio.to_thread(lifecycle.down)
    assert find_cache() is None


@pytest.fixture
def no_cache(ray_cluster: None) -> Iterator[None]:
    yield
    stop_cache()


def test_it_runs_as_the_fleet_file_says_or_not_at_all(no_cache: None, tmp_path: Path) -> None:
    def settings(**cache: Any) -> FleetConfig:
        return fleet("http://x", store=f"sqlite:///{tmp_path / 'store.db'}", cache=cache)

    def started() -> tuple[Any, Any]:
        actor = find_cache()
        assert actor is not None
        caching, _ = ray.get(actor.ping.remote(), timeout=30)
        return actor, caching.ttl_s

    bring_cache(fleet("http://x"))
    assert find_cache() is None
    bring_cache(settings(ttl_s=5))
    first, ttl_s = started()
    assert ttl_s == 5
    bring_cache(settings(ttl_s=5))
    assert started()[0] == first, "nothing changed"
    bring_cache(settings(ttl_s=6))
    second, ttl_s = started()
    assert ttl_s == 6
    assert second != first
    with pytest.raises(ConfigError, match=r"^fleet.yaml: cache.url: .*cannot be") as caught:
        bring_cache(settings(url="redis://localhost:1/0"))
    assert "\n" not in str(caught.value)
    assert find_cache() is None
    bring_cache(settings())
    bring_cache(fleet("http://x"))
    assert find_cache() is None
