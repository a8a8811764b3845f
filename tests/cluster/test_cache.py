"""Calls that the cache may answer: client, cache and inference with real HTTP, in one process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from agentcloud.cluster.cache_client import CacheClient
from agentcloud.cluster.cache_service import CacheService
from agentcloud.cluster.cache_store import SqlAnswers
from agentcloud.cluster.cache_wire import (
    Alone,
    Answered,
    CacheLost,
    Entry,
    Landed,
    Send,
    Tell,
    Told,
)
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import EndpointKind, Routing
from agentcloud.cluster.errors import CallTimeout, InvalidRequest, Overloaded
from agentcloud.cluster.sandbox import FaultKind, FaultRule, Latency, SandboxConfig
from agentcloud.cluster.sql import open_database
from tests.cluster.serving import HAIKU, PARAMS, serving, until

SURE: dict[str, Any] = {**PARAMS, "temperature": 0}
ONCE = Routing(max_attempts=1)
TTL_S = 1000.0
NOW_S = 1_800_000_000.0


class Wall:
    """A wall clock that the test sets."""

    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def sql(url: str) -> SqlAnswers:
    return SqlAnswers(open_database(url, file="responses.db"), ttl_s=TTL_S, max_bytes=10**6)


@asynccontextmanager
async def caching(
    answers: SqlAnswers | None = None, wall: Wall | None = None, clock: FakeClock | None = None
) -> AsyncIterator[CacheService]:
    """A cache without Ray; afterwards nothing may be under way."""
    service = CacheService(answers, ttl_s=TTL_S, unix_s=wall or Wall(), clock=clock)
    yield service
    assert service._flights.waiting == 0
    await asyncio.to_thread(service.close)


class Wire:
    """The way to a cache, which the test can cut."""

    cache: CacheService

    def __init__(self, cache: CacheService | None = None) -> None:
        if cache is not None:
            self.cache = cache
        self.lost: CacheLost | None = None

    async def exchange(self, tell: Tell) -> Told:
        return await self.cache.exchange(self.checked(tell))

    async def wait(self, holder: str) -> Told:
        return await self.cache.wait(self.checked(holder))

    async def leave(self, holder: str) -> None:
        await self.cache.leave(self.checked(holder))

    def checked(self, told: Any) -> Any:
        if self.lost is not None:
            raise self.lost
        return told


async def test_the_second_answer_costs_nothing_and_says_where_it_is_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with caching() as cache, serving(monkeypatch, cache=cache) as served:
        first = await served.inference.create(SURE)
        again = await served.inference.create({**SURE, "metadata": {"user_id": "u"}})
        assert served.sends == len(served.scheduler.leases) == 1
        snapshot = await cache.snapshot()
    assert again.to_dict() == first.to_dict()
    was, receipt = first.agentcloud, again.agentcloud
    assert not was.cached
    assert (was.attempts, receipt.attempts) == (1, 0)
    assert receipt.cached
    assert receipt.cost_usd == 0
    assert receipt.saved_usd == was.cost_usd
    assert receipt.usage.cache_read_tokens == was.usage.prompt_tokens
    assert receipt.usage.output_tokens == was.usage.output_tokens
    assert (receipt.endpoint, receipt.model, receipt.kind) == ("cache", HAIKU, EndpointKind.HOSTED)
    assert receipt.call_id != was.call_id
    assert was.call_id in receipt.reason
    assert was.endpoint in receipt.reason
    assert receipt.timings.total_s is not None
    assert receipt.timings.ttft_s is receipt.timings.generation_s is None
    assert (snapshot["hits"], snapshot["misses"], snapshot["hit_rate"]) == (1, 1, 0.5)
    assert Decimal(snapshot["saved_usd"]) == was.cost_usd


async def test_equal_calls_at_once_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async with caching() as cache, serving(monkeypatch, cache=cache) as served:
        messages = await asyncio.gather(*(served.inference.create(SURE) for _ in range(20)))
        assert served.sends == 1
        (counts,) = cache.counts().values()
    told = [message.agentcloud.cost_usd for message in messages]
    costs = [usd for usd in told if usd is not None]
    assert len(costs) == 20
    assert sorted(costs)[:19] == [0] * 19
    assert (counts.hits, counts.shared, counts.misses) == (0, 19, 1)
    assert counts.saved_usd == 19 * max(costs)
    reasons = Counter("shared with" in message.agentcloud.reason for message in messages)
    assert reasons == {True: 19, False: 1}


async def test_sampled_calls_ask_for_it_and_anyone_may_refuse_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with caching() as cache, serving(monkeypatch, cache=cache) as served:
        for params, routing in [
            (PARAMS, Routing()),
            (PARAMS, Routing()),
            (PARAMS, Routing(cache=True)),
            (SURE, Routing()),
            (SURE, Routing(cache=False)),
        ]:
            message = await served.inference.create(params, routing)
            assert not message.agentcloud.cached
        assert (await served.inference.create(PARAMS, Routing(cache=True))).agentcloud.cached


async def test_an_answer_that_was_cut_off_is_shared_and_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = {**SURE, "max_tokens": 1}
    async with caching() as cache, serving(monkeypatch, cache=cache) as served:
        one, two = await asyncio.gather(*(served.inference.create(cut) for _ in range(2)))
        assert one.stop_reason == two.stop_reason == "max_tokens"
        assert served.sends == 1
        assert not (await served.inference.create(cut)).agentcloud.cached
        assert served.sends == 2


async def test_a_request_that_is_wrong_is_wrong_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**SURE, "messages": [{"role": "nobody", "content": "x"}]}
    async with caching() as cache, serving(monkeypatch, cache=cache) as served:
        calls = (served.inference.create(wrong) for _ in range(3))
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [InvalidRequest] * 3
        assert len({id(error) for error in errors}) == 3
        assert len({str(error) for error in errors}) == 1
        assert served.sends == 1
        with pytest.raises(InvalidRequest):
            await served.inference.create(wrong)
        assert served.sends == 2, "errors are not kept"


async def test_where_one_fails_the_next_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [FaultRule(kind=FaultKind.OVERLOADED, calls=[1])]
    config = SandboxConfig(faults=rules)
    async with caching() as cache, serving(monkeypatch, config, cache=cache) as served:
        calls = (served.inference.create(SURE, ONCE) for _ in range(5))
        first, second, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, Overloaded)
        assert not isinstance(second, BaseException)
        assert second.agentcloud.attempts == 1
        for each in others:
            assert not isinstance(each, BaseException)
            assert each.agentcloud.cached
        assert served.sends == 2


async def test_a_caller_that_goes_away_leaves_its_call_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SandboxConfig(latency={"*": Latency(ttft_s=0.3)})
    async with caching() as cache, serving(monkeypatch, slow, cache=cache) as served:
        tasks = [asyncio.create_task(served.inference.create(SURE)) for _ in range(3)]
        await until(lambda: cache._flights.waiting == 2)
        tasks[2].cancel()
        await until(lambda: cache._flights.waiting == 1)
        await until(lambda: len(served.scheduler.leases) == 1)
        tasks[0].cancel()
        assert not (await tasks[1]).agentcloud.cached
        assert len(served.scheduler.leases) == 2
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_deadline_holds_while_another_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SandboxConfig(latency={"*": Latency(ttft_s=0.4)})
    async with caching() as cache, serving(monkeypatch, slow, cache=cache) as served:
        task = asyncio.create_task(served.inference.create(SURE))
        await until(lambda: len(cache._flights) == 1)
        with pytest.raises(CallTimeout, match=r"0.05 s passed while an equal call"):
            await served.inference.create(SURE, Routing(deadline_s=0.05))
        assert not (await task).agentcloud.cached
        assert served.sends == 1


async def test_an_answer_outlives_the_cache_and_not_its_time(
    monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    wall, wire = Wall(), Wire()
    async with serving(monkeypatch, cache=wire) as served:
        for after_s, is_cached in [(0.0, False), (TTL_S - 1, True), (TTL_S, False), (TTL_S, True)]:
            wall.now_s = NOW_S + after_s
            async with caching(sql(database), wall) as wire.cache:
                assert (await served.inference.create(SURE)).agentcloud.cached is is_cached
                await until(lambda: bool(wire.cache._recent))


async def test_a_database_that_fails_makes_calls_miss_and_fails_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = sql(f"sqlite:///{tmp_path / 'x.db'}")
    with answers._engine.begin() as connection:
        connection.execute(text("DROP TABLE responses"))
    async with caching(answers) as cache, serving(monkeypatch, cache=cache) as served:
        assert not (await served.inference.create(SURE)).agentcloud.cached
        assert (await served.inference.create(SURE)).agentcloud.cached, "still in memory"
        assert (await cache.snapshot())["answers"] is None


class Stuck(SqlAnswers):
    """A database that answers when the test lets it."""

    def __init__(self, url: str) -> None:
        super().__init__(open_database(url, file="responses.db"), ttl_s=TTL_S, max_bytes=10**6)
        self.open = threading.Event()
        self.reads = 0

    def read(self, keys: Sequence[str]) -> dict[str, Entry]:
        self.reads += 1
        self.open.wait(30)
        return super().read(keys)


async def test_a_database_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("agentcloud.cluster.cache_service.READ_S", 0.05)
    answers = Stuck(f"sqlite:///{tmp_path / 'x.db'}")
    async with caching(answers) as cache:
        client = CacheClient(cache)
        for key in "ab":
            assert isinstance(await asyncio.wait_for(client.ask(key, "small"), 10), Send)
        assert answers.reads == 1, "it is not asked again meanwhile"
        answers.open.set()
        await until(lambda: cache._reading is None)
        assert isinstance(await client.ask("c", "small"), Send)
        assert answers.reads == 2
        await client.close()


async def test_without_a_cache_calls_are_sent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with caching() as cache:
        wire = Wire(cache)
        wire.lost = CacheLost("no such actor", is_gone=True)
        async with serving(monkeypatch, cache=wire) as served:
            messages = await asyncio.gather(*(served.inference.create(SURE) for _ in range(3)))
            assert served.sends == 3
            assert not any(message.agentcloud.cached for message in messages)
            wire.lost = None
            assert not (await served.inference.create(SURE)).agentcloud.cached, "not yet again"


async def test_after_a_restart_nothing_is_sent_twice() -> None:
    entry = Entry(NOW_S, None, b"answer")
    async with caching() as old, caching() as new:
        wires = Wire(old), Wire(old)
        clients = [CacheClient(wire) for wire in wires]
        sent = await clients[0].ask("k", "small")
        assert isinstance(sent, Send)
        waits = asyncio.create_task(clients[1].ask("k", "small"))
        await until(lambda: old._flights.waiting == 1)
        for wire in wires:
            wire.lost = CacheLost("restarting")
        for wake in old._wakes.values():
            wake.set()
        await old.leave(clients[1].holder)
        # The one that waits is heard first, and waits on.
        wires[0].cache = wires[1].cache = new
        wires[1].lost = None
        await until(lambda: new._flights.waiting == 1)
        wires[0].lost = None
        await until(lambda: not new._flights._orphans)
        clients[0].landed(Landed(sent.ask, b"answer", None, is_kept=True))
        verdict = await waits
        assert isinstance(verdict, Answered)
        assert verdict.entry == entry
        for client in clients:
            await client.close()


async def test_a_process_that_is_silent_is_taken_over_from_and_learns_of_it() -> None:
    clock = FakeClock()
    async with caching(clock=clock) as cache:
        dead, alive = Wire(cache), Wire(cache)
        one, two = CacheClient(dead), CacheClient(alive)
        assert isinstance(await one.ask("k", "small"), Send)
        lost = asyncio.create_task(one.ask("other", "small"))
        assert isinstance(await lost, Send)
        second = asyncio.create_task(two.ask("k", "small"))
        await until(lambda: cache._flights.waiting == 1)
        dead.lost = CacheLost("cut")
        clock.advance(16.0)
        cache._flights.heard(two.holder, clock.now())
        cache.look()
        assert isinstance(await second, Send)
        dead.lost = None
        third = asyncio.create_task(one.ask("k", "small"))
        await until(lambda: cache._flights.waiting == 1)
        await two.close()
        assert isinstance(await third, Send)
        await one.close()


async def test_answers_that_nobody_can_read_are_sent_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with caching() as cache, serving(monkeypatch, cache=cache) as served:
        await served.inference.create(SURE)
        await until(lambda: bool(cache._recent))
        (key,) = cache._recent
        cache._remember(key, Entry(NOW_S, None, b'{"message": 1}'))
        assert not (await served.inference.create(SURE)).agentcloud.cached


async def test_closing_takes_no_answer_along() -> None:
    async with caching() as cache:
        one, two = CacheClient(cache), CacheClient(cache)
        sent = await one.ask("k", "small")
        assert isinstance(sent, Send)
        waits = asyncio.create_task(two.ask("k", "small"))
        await until(lambda: cache._flights.waiting == 1)
        one.landed(Landed(sent.ask, b"answer", None, is_kept=True))
        await one.close()
        assert isinstance(await waits, Answered)
        await two.close()
        assert not isinstance(await CacheClient(cache).ask("k", "small"), Alone)
