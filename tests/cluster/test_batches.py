"""Calls that can wait: chosen by deadline, packed, matched, retried, resumed, given up."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from agentcloud.cluster.batch_book import BatchBook
from agentcloud.cluster.batch_client import BatcherLost
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.errors import (
    BatchFailed,
    CallTimeout,
    ConnectionFailed,
    InvalidRequest,
    NoEndpoint,
)
from agentcloud.cluster.retry import is_unusable
from agentcloud.cluster.sandbox import Fault, FaultKind
from tests.cluster.batching import FAST, WITH_BATCH, ask, asked, crash, lane
from tests.cluster.serving import CANARY, HAIKU, PARAMS, serving, until

HOURS = Routing(deadline_s=6 * 3600.0)
LANE = f"main/{HAIKU}:batch"


async def test_a_long_deadline_takes_the_batch_at_half_the_price(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path) as here:
        batcher = await here.batcher()
        async with serving(
            monkeypatch, batches=batcher, url=here.sandbox.url, hosted=WITH_BATCH, batch=FAST
        ) as served:
            create = served.inference.create
            waited, now, soon = await asyncio.gather(
                create(PARAMS, HOURS),
                create(PARAMS),
                create(PARAMS, Routing(deadline_s=600.0)),
            )
            async with served.inference.stream(PARAMS, HOURS) as stream:
                assert [event async for event in stream]
            assert stream.receipt is not None
            receipts = [waited.agentcloud, now.agentcloud, soon.agentcloud, stream.receipt]
            assert [receipt.batch for receipt in receipts] == [True, False, False, False]
            assert waited.agentcloud.endpoint == LANE
            full = load_catalog().cost_usd(HAIKU, now.usage)
            assert full is not None
            assert waited.agentcloud.cost_usd == full / 2
            assert now.agentcloud.cost_usd == full
            leases = served.scheduler.leases
            reserved = {each.endpoint.batch: each.reserved_usd for each in leases}
            assert reserved[True] == reserved[False] / 2
            lease = next(each for each in served.scheduler.leases if each.endpoint.batch)
            assert lease.expires_in_s > 24 * 3600
            assert lease.reason.startswith("cheapest to meet")
            assert waited.usage.service_tier == "batch"
            # It learns from what it took: an hour was assumed.
            state = served.scheduler.core.endpoint(LANE)
            assert state.estimate(20, 32, 0.0).total_s < 3600 * 0.6
            with pytest.raises(NoEndpoint, match="takes only calls that can wait: a deadline of"):
                await create(PARAMS, Routing(endpoint=LANE))
            with pytest.raises(NoEndpoint, match="takes only calls that can wait"):
                await create(PARAMS, Routing(endpoint=LANE, deadline_s=9e4, timeout_s=60.0))


async def test_mixed_results_are_matched_and_failed_ones_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path) as here:
        batcher = await here.batcher()
        async with serving(
            monkeypatch, batches=batcher, url=here.sandbox.url, hosted=WITH_BATCH, batch=FAST
        ) as served:
            here.sandbox.add_fault(Fault(kind=FaultKind.EXPIRED), 2)
            here.sandbox.add_fault(Fault(kind=FaultKind.API_ERROR), 2)

            async def one(index: int) -> Any:
                text = f"Ticket {index}: {'x' * (index * 40)}"
                params = PARAMS | {"messages": [{"role": "user", "content": text}]}
                return await served.inference.create(params, HOURS)

            wrong = served.inference.create(
                PARAMS | {"output_config": {"effort": "enormous"}}, HOURS
            )
            *gathered, refused = await asyncio.gather(
                *(one(index) for index in range(30)), wrong, return_exceptions=True
            )
            assert isinstance(refused, InvalidRequest)
            answers: list[Any] = gathered
            # Longer prompts cost more: each answer is that of its own request.
            tokens = [answer.usage.input_tokens for answer in answers]
            assert tokens == sorted(tokens)
            assert tokens[0] < tokens[-1]
            attempts = [answer.agentcloud.attempts for answer in answers]
            assert sum(attempts) == 34
            assert all(answer.agentcloud.batch for answer in answers)
            assert here.requests_made == 35
            assert here.made[0]["request_counts"] == {
                "succeeded": 26,
                "errored": 3,
                "expired": 2,
                "canceled": 0,
                "processing": 0,
            }
            budget = served.scheduler.core.budgets()[0]
            assert budget.spent_usd == sum((a.agentcloud.cost_usd for a in answers), Decimal(0))
            assert budget.unknown_usd == 0


async def test_a_refused_creation_is_decided_by_the_one_retry_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path) as here:
        batcher = await here.batcher()
        async with serving(
            monkeypatch, batches=batcher, url=here.sandbox.url, hosted=WITH_BATCH, batch=FAST,
            retry={"base_s": 0.01},
        ) as served:  # fmt: skip
            here.sandbox.add_fault(Fault(kind=FaultKind.API_ERROR, at="batch"))
            message = await served.inference.create(PARAMS, HOURS)
            assert message.agentcloud.attempts == 2
            assert message.agentcloud.batch
            assert len(here.made) == 1


async def test_packs_by_count_and_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with lane(monkeypatch, tmp_path, max_requests=4, max_bytes=20_000) as here:
        client = here.client(await here.batcher())
        small = [ask(f"ticket {index}") for index in range(9)]
        large = [ask("x" * 9000 + str(index)) for index in range(3)]
        deliveries = await asked(client, *small, *large)
        assert [each.ask_id for each in deliveries] == [each.ask_id for each in [*small, *large]]
        assert all(each.message is not None for each in deliveries)
        assert sorted(len(batch["custom_ids"]) for batch in here.made) == [1, 2, 2, 4, 4] or sorted(
            len(batch["custom_ids"]) for batch in here.made
        ) == [1, 3, 4, 4]


async def test_a_batch_whose_creation_was_not_answered_is_found_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path) as here:
        client = here.client(await here.batcher())
        here.sandbox.add_fault(Fault(kind=FaultKind.CUT_BEFORE_HEADERS, at="batch"))
        deliveries = await asked(client, *(ask(str(index)) for index in range(3)))
        assert all(each.message is not None for each in deliveries)
        assert (len(here.made), here.requests_made) == (1, 3)


async def test_a_batcher_that_starts_again_goes_on_and_sends_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Follows:
        """The port of whichever batcher lives."""

        async def exchange(self, tell: Any) -> Any:
            try:
                return await here.batchers[-1].exchange(tell)
            except (IndexError, RuntimeError) as error:  # as a call to a dead actor
                raise BatcherLost from error

        async def leave(self, holder: str) -> None:
            await here.batchers[-1].leave(holder)

    async with lane(monkeypatch, tmp_path, takes_s=0.5) as here:
        await here.batcher()
        client = here.client(Follows())
        work = asyncio.create_task(asked(client, *(ask(str(index)) for index in range(20))))
        await until(lambda: len(here.made) == 1)
        await crash(here.batchers.pop())
        await here.batcher()
        deliveries = await work
        assert all(each.message is not None for each in deliveries)
        assert (len(here.made), here.requests_made) == (1, 20)
        assert not any(each.taken_over for each in deliveries)


async def test_a_batch_written_down_and_never_made_is_sent_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path) as here:
        batcher = await here.batcher()
        client = here.client(batcher)

        async def dies(_requests: Any) -> str:
            await asyncio.Event().wait()
            return ""

        monkeypatch.setattr(batcher._sender.accounts["main"], "create", dies)
        lost = asyncio.create_task(client.ask(ask("a")))
        await until(lambda: any(batch.task for batch in batcher._book.batches.values()))
        await asyncio.sleep(0.05)
        assert here.made == []
        await crash(here.batchers.pop())
        assert client._main is not None
        client._main.cancel()
        here.clients.clear()
        lost.cancel()
        # Another process of another session asks the same.
        [delivery] = await asked(here.client(await here.batcher("two")), ask("a"))
        assert delivery.message is not None
        assert delivery.taken_over
        assert (len(here.made), here.requests_made) == (1, 1)


async def test_calls_of_a_dead_process_are_taken_over_by_calls_alike_and_paid_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path, takes_s=0.2) as here:
        batcher = await here.batcher(holder_timeout_s=0.4)
        dead = here.client(batcher)
        tasks = [asyncio.create_task(dead.ask(ask(text))) for text in "abc"]
        await until(lambda: len(here.made) == 1)
        assert dead._main is not None
        dead._main.cancel()
        dead._main = None
        # Run again at once, and twice the same where it was once: one is new.
        client = here.client(batcher)
        deliveries = await asked(client, ask("a"), ask("b"), ask("c"), ask("a"))
        assert all(each.message is not None for each in deliveries)
        assert sorted(each.taken_over for each in deliveries) == [False, True, True, True]
        assert here.requests_made == 4
        for task in tasks:
            task.cancel()


async def test_equal_calls_of_processes_that_live_are_all_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path, takes_s=0.3) as here:
        batcher = await here.batcher()
        one, two = here.client(batcher), here.client(batcher)
        first = asyncio.create_task(asked(one, ask("a"), ask("a")))
        await until(lambda: len(here.made) == 1)
        await asked(two, ask("a"))
        await first
        assert here.requests_made == 3


async def test_what_is_given_up_is_dropped_or_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path, takes_s=60.0, linger_s=0.3) as here:
        batcher = await here.batcher()
        client = here.client(batcher)
        unsent = asyncio.create_task(client.ask(ask("never")))
        await until(lambda: len(batcher._packer) == 1)
        unsent.cancel()
        await until(lambda: len(batcher._packer) == 0)
        both = [asyncio.create_task(client.ask(ask(text))) for text in "ab"]
        await until(lambda: len(here.made) == 1)
        assert here.requests_made == 2
        both[0].cancel()
        await until(lambda: client.waiting == 1)
        await asyncio.sleep(0.1)
        assert here.made[0]["status"] == "in_progress", "one still waits"
        both[1].cancel()
        await until(lambda: here.made[0]["status"] == "ended")
        assert here.made[0]["request_counts"]["canceled"] == 2
        await until(lambda: not batcher._book.batches)
        assert (await here.batchers[-1].snapshot())["calls"] == 0


async def test_leaving_cancels_what_a_process_waits_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path, takes_s=60.0) as here:
        batcher = await here.batcher()
        client = here.client(batcher)
        waits = asyncio.create_task(client.ask(ask("a")))
        await until(lambda: bool(here.made))
        await client.close()
        await batcher.stop()
        here.batchers.clear()
        assert here.made[0]["status"] == "ended"
        assert waits.cancelled() or waits.done() or waits.cancel()


async def test_a_deadline_that_passes_gives_the_call_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path, takes_s=60.0) as here:
        batcher = await here.batcher()
        async with serving(
            monkeypatch,
            batches=batcher,
            url=here.sandbox.url,
            hosted=WITH_BATCH,
            batch=FAST | {"min_deadline_s": 0.5, "predicted_s": 0.2},
        ) as served:
            with pytest.raises(CallTimeout):
                await served.inference.create(PARAMS, Routing(deadline_s=0.6, max_attempts=1))
            await until(lambda: here.made[0]["status"] == "ended")
            assert served.scheduler.core.budgets()[0].unknown_usd > 0


async def test_a_batch_that_the_api_finds_too_large_is_sent_as_smaller_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path, server={"max_requests": 2}) as here:
        client = here.client(await here.batcher())
        deliveries = await asked(client, *(ask(str(index)) for index in range(5)))
        assert all(each.message is not None for each in deliveries)
        assert sorted(len(batch["custom_ids"]) for batch in here.made) == [1, 2, 2]


async def test_a_batch_that_somebody_deleted_is_lost_and_no_fault_of_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with lane(monkeypatch, tmp_path, takes_s=60.0, poll_s=0.5) as here:
        client = here.client(await here.batcher())
        work = asyncio.create_task(asked(client, ask("a")))
        await until(lambda: bool(here.made))
        async with AsyncAnthropic(base_url=here.sandbox.url, api_key=CANARY) as somebody:
            (made,) = here.made
            await somebody.messages.batches.cancel(made["id"])
            await somebody.messages.batches.delete(made["id"])
        (delivery,) = await work
        assert isinstance(delivery.error, ConnectionFailed)
        assert delivery.error.maybe_paid
        assert not is_unusable(delivery.error)


def test_an_error_that_a_dead_process_left_is_taken_over_by_nobody() -> None:
    book = BatchBook("session", 15.0)
    book.heard("dead", 0.0)
    mine = ask("a")
    call = book.add(mine, "dead")
    batch = book.open_batch("main", [call], 0.0)
    book.answer(call, None, BatchFailed("expired"))
    book.close_batch(batch)
    assert book.leave_behind("dead") == [call]
    assert not book.is_coming(call)
    assert book.left_behind(mine) is None
