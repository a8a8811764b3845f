"""Fan-outs with a common beginning: one call writes the hosted cache, the rest read it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import (
    Lease,
    LeaseRequest,
    Outcome,
    Policy,
    Routing,
    Settlement,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.scheduler import SchedulerCore
from tests.cluster.serving import serving

MODEL = "claude-opus-5"
SHARED = (1, 2, 3)
TOKENS = (4000, 8000, 12000)


class Hosted:
    """A core with one hosted model and a clock of its own."""

    def __init__(self, **changes: Any) -> None:
        data: dict[str, Any] = {
            "accounts": {"main": {"max_concurrency": 64}},
            "hosted": {MODEL: {"account": "main"}},
        }
        config = parse_fleet(data | changes)
        self.clock = FakeClock(0.0)
        catalog = load_catalog().with_overrides(config.hosted)
        self.core = SchedulerCore(config, catalog, self.clock, random.Random(1))
        self.core.register(hosted_specs(config))
        self.count = 0

    def submit(self, *own: int, **routing: Any) -> str:
        self.count += 1
        prefix = (*SHARED, *own)
        tokens = (*TOKENS, *(12100 + 100 * at for at in range(len(own))))
        request = LeaseRequest(
            str(self.count),
            MODEL,
            12400,
            16,
            prefix=prefix,
            prefix_tokens=tokens,
            routing=Routing(**routing),
        )
        self.core.submit(request)
        return request.call_id

    def granted(self) -> list[Lease]:
        return [each.lease for each in self.core.poll() if isinstance(each, Granted)]

    def settle(self, lease: Lease, outcome: Outcome = Outcome.OK) -> None:
        usage = TokenUsage(12400, 0, 0, 16) if outcome is Outcome.OK else None
        kind = "api_error" if outcome is Outcome.FAILED else None
        self.core.settle(Settlement(lease.lease_id, outcome, usage, error_kind=kind))


def test_of_a_fan_out_one_is_sent_and_the_rest_follow_its_first_token() -> None:
    hosted = Hosted()
    for number in range(10):
        hosted.submit(100 + number)
    [writer] = hosted.granted()
    assert (writer.warms, writer.reused_chunks) == (True, 3)
    assert hosted.granted() == []
    hosted.core.warmed(writer.lease_id)
    rest = hosted.granted()
    assert [lease.call_id for lease in rest] == [str(number) for number in range(2, 11)]
    assert all(not lease.warms and lease.reused_chunks == 3 for lease in rest)
    # It stays warm for whoever comes within five minutes, and not longer.
    hosted.clock.advance(200.0)
    hosted.submit(500)
    [late] = hosted.granted()
    assert (late.warms, late.reused_chunks) == (False, 3)
    hosted.clock.advance(301.0)
    hosted.submit(501)
    [cold] = hosted.granted()
    assert (cold.warms, cold.reused_chunks) == (False, 0)


def test_who_has_another_beginning_does_not_wait() -> None:
    hosted = Hosted()
    hosted.submit(100)
    hosted.submit(101)
    assert len(hosted.granted()) == 1
    hosted.core.submit(
        LeaseRequest("other", MODEL, 12400, 16, prefix=(7, 8), prefix_tokens=(6000, 12000))
    )
    hosted.core.submit(LeaseRequest("short", MODEL, 10, 16))
    assert {lease.call_id for lease in hosted.granted()} == {"other", "short"}


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
def test_when_the_writer_fails_the_next_one_writes(outcome: Outcome) -> None:
    hosted = Hosted()
    for number in range(3):
        hosted.submit(100 + number)
    [writer] = hosted.granted()
    hosted.settle(writer, outcome)
    [second] = hosted.granted()
    assert second.warms
    hosted.settle(second, outcome)
    [third] = hosted.granted()
    assert third.warms


def test_a_first_token_that_does_not_come_is_not_waited_for_for_ever() -> None:
    hosted = Hosted()
    for number in range(3):
        hosted.submit(100 + number)
    assert len(hosted.granted()) == 1
    wake_s = hosted.core.next_wake_s()
    assert wake_s is not None
    assert wake_s <= 10.0
    hosted.clock.advance(10.0)
    assert len(hosted.granted()) >= 1
    hosted.clock.advance(10.0)
    hosted.granted()
    assert hosted.core.waiting == 0


def test_no_call_is_held_for_less_than_it_saves_or_beyond_its_deadline() -> None:
    # Reading saves $0.069: at a thousand dollars an hour, a hundred times over, not a moment.
    hosted = Hosted(usd_per_hour_waited="1000")
    for number in range(3):
        hosted.submit(100 + number, policy=Policy.LATENCY)
    assert len(hosted.granted()) == 3
    hosted = Hosted()
    hosted.submit(100)
    hosted.submit(101, deadline_s=1.0)
    assert len(hosted.granted()) == 2
    for off in ({"cache_marks": False}, {}):
        hosted = Hosted(**off)
        for number in range(3):
            hosted.submit(100 + number, cache_marks=None if off else False)
        assert len(hosted.granted()) == 3


def test_a_held_call_can_be_cancelled() -> None:
    hosted = Hosted()
    first, second = hosted.submit(100), hosted.submit(101)
    [writer] = hosted.granted()
    assert writer.call_id == first
    assert hosted.core.cancel(second)
    hosted.core.warmed(writer.lease_id)
    assert hosted.granted() == []
    assert hosted.core.waiting == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "warm", "ok", "fail", "cancel", "wait"]), st.integers(0)),
        max_size=60,
    )
)
def test_nothing_is_lost_whatever_happens(events: list[tuple[str, int]]) -> None:
    hosted = Hosted()
    open_: dict[str, Lease] = {}
    for what, which in events:
        leases, waiting = list(open_.values()), list(hosted.core._waiters)
        if what == "ask":
            hosted.submit(100 + which % 3)
        elif what == "wait":
            hosted.clock.advance(which % 7)
        elif what == "cancel" and waiting:
            hosted.core.cancel(waiting[which % len(waiting)])
        elif leases:
            lease = leases[which % len(leases)]
            if what == "warm":
                hosted.core.warmed(lease.lease_id)
            elif what in ("ok", "fail"):
                del open_[lease.call_id]
                hosted.settle(lease, Outcome.OK if what == "ok" else Outcome.CANCELLED)
        open_ |= {lease.call_id: lease for lease in hosted.granted()}
    for _ in range(4):
        hosted.clock.advance(10.0)
        open_ |= {lease.call_id: lease for lease in hosted.granted()}
    assert hosted.core.waiting == 0, "everybody has been let go"
    for lease in open_.values():
        hosted.settle(lease)
    assert hosted.core.inflight == 0
    warming = hosted.core._cache._warming
    assert not warming
    assert not warming._asked
    assert not warming._writes


@pytest.mark.parametrize("wire", ["stream", "unary"])
async def test_at_the_sandbox_a_fan_out_writes_once(
    monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    hosted = {MODEL: {"account": "main"}}
    system = "rules of the house. " * 600

    def ask(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"question {number}?"}]
        return {"model": MODEL, "max_tokens": 16, "system": system, "messages": messages}

    async with serving(monkeypatch, hosted=hosted, aliases={}, wire=wire) as served:
        create = served.inference.create
        answers = await asyncio.gather(*(create(ask(number)) for number in range(8)))
        usages = [answer.agentcloud.usage for answer in answers]
        # The first came alone, as far as anybody knew; the second writes, the others read.
        wrote = [usage.cache_write_tokens for usage in usages if usage.cache_write_tokens]
        assert len(wrote) == 1
        assert [usage.cache_read_tokens for usage in usages].count(wrote[0]) == 6
        assert sum(lease.warms for lease in served.scheduler.leases) == 1
        saved = [answer.agentcloud.saved_usd for answer in answers]
        assert sum(each for each in saved if each is not None) > 0


async def test_a_stream_tells_of_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = {MODEL: {"account": "main"}}
    system = "rules of the house. " * 600

    def ask(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"question {number}?"}]
        return {"model": MODEL, "max_tokens": 16, "system": system, "messages": messages}

    async with serving(monkeypatch, hosted=hosted, aliases={}) as served:
        await served.inference.create(ask(0))
        async with served.inference.stream(ask(1)) as writer:
            # It is open at its first token, and not settled: the next one reads.
            assert served.scheduler.leases[-1].warms
            answer = await served.inference.create(ask(2))
            assert answer.agentcloud.usage.cache_read_tokens > 0
            async for _ in writer:
                pass
