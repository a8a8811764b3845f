"""Message batches of the sandbox, through the real client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from agentcloud.cluster.sandbox import BatchSettings, Fault, FaultKind, Sandbox, SandboxConfig

MODEL = "claude-haiku-4-5"


def request(custom_id: str, text: str = "Hello there", **params: Any) -> Any:
    """A request of a batch."""
    messages = [{"role": "user", "content": text}]
    given = {"model": MODEL, "max_tokens": 16, "messages": messages}
    return {"custom_id": custom_id, "params": given | params}


@asynccontextmanager
async def connected(
    batches: BatchSettings | None = None,
) -> AsyncIterator[tuple[Sandbox, AsyncAnthropic]]:
    """A sandbox and the real client."""
    config = SandboxConfig(batches=batches or BatchSettings())
    async with (
        Sandbox(config) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox-a", max_retries=0) as client,
    ):
        yield sandbox, client


async def ended(client: AsyncAnthropic, batch_id: str) -> Any:
    """The batch once it has ended."""
    async with asyncio.timeout(10):
        while True:
            batch = await client.messages.batches.retrieve(batch_id)
            if batch.processing_status == "ended":
                return batch
            await asyncio.sleep(0.01)


async def test_every_kind_of_result_comes_once_under_its_id() -> None:
    async with connected() as (sandbox, client):
        sandbox.add_fault(Fault(kind=FaultKind.EXPIRED))
        sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED))
        batch = await client.messages.batches.create(
            requests=[
                request("old"),
                request("busy"),
                request("wrong", max_tokens="much"),
                *(request(f"good-{index}") for index in range(20)),
            ]
        )
        assert batch.processing_status == "in_progress"
        assert (batch.request_counts.processing, batch.results_url) == (23, None)
        batch = await ended(client, batch.id)
        counts = batch.request_counts
        assert (counts.succeeded, counts.errored, counts.expired) == (20, 2, 1)
        rows = [row async for row in await client.messages.batches.results(batch.id)]
        results = {row.custom_id: row.result for row in rows}
        assert len(results) == len(rows) == 23
        assert [row.custom_id for row in rows] != sorted(results), "in no order"
        assert results["old"].type == "expired"
        busy, wrong, good = results["busy"], results["wrong"], results["good-0"]
        assert busy.type == "errored"
        assert busy.error.error.type == "overloaded_error"
        assert wrong.type == "errored"
        assert wrong.error.error.type == "invalid_request_error"
        assert good.type == "succeeded"
        assert good.message.usage.service_tier == "batch"
        assert good.message.usage.output_tokens == 16


async def test_a_batch_that_takes_too_long_expires() -> None:
    async with connected(BatchSettings(takes_s=1, expires_s=0.01)) as (_, client):
        batch = await client.messages.batches.create(requests=[request("a")])
        batch = await ended(client, batch.id)
        assert batch.request_counts.expired == 1


async def test_cancelling_ends_and_deleting_forgets() -> None:
    async with connected(BatchSettings(takes_s=60)) as (_, client):
        batches = client.messages.batches
        batch = await batches.create(requests=[request("a"), request("b")])
        with pytest.raises(anthropic.BadRequestError, match="cancel it first"):
            await batches.delete(batch.id)
        with pytest.raises(anthropic.AnthropicError, match="finished processing"):
            await batches.results(batch.id)
        assert (await batches.cancel(batch.id)).request_counts.canceled == 2
        with pytest.raises(anthropic.BadRequestError, match="has ended"):
            await batches.cancel(batch.id)
        assert (await batches.delete(batch.id)).id == batch.id
        with pytest.raises(anthropic.NotFoundError):
            await batches.retrieve(batch.id)


async def test_lists_an_accounts_own_batches_the_newest_first() -> None:
    async with connected() as (_, client):
        batches = client.messages.batches
        made = [(await batches.create(requests=[request("a")])).id for _ in range(5)]
        page = await batches.list(limit=2)
        assert [batch.id for batch in page.data] == made[:2:-1]
        assert [batch.id async for batch in page] == made[::-1]
        before = await batches.list(limit=2, before_id=made[0])
        assert [batch.id for batch in before.data] == [made[2], made[1]]
        other = client.with_options(api_key="sandbox-b")
        assert (await other.messages.batches.list()).data == []
        with pytest.raises(anthropic.NotFoundError):
            await other.messages.batches.retrieve(made[0])
        with pytest.raises(anthropic.BadRequestError, match="limit"):
            await batches.list(limit=0)


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "requests: Input should be a non-empty list"),
        ([request("a b")], "requests.0.custom_id: String should match"),
        ([request("a"), request("a")], "requests.1.custom_id: a is not unique"),
        ([{"custom_id": "a"}], "requests.0.params: Field required"),
    ],
)
async def test_a_wrong_shape_is_refused_at_once(requests: Any, said: str) -> None:
    async with connected() as (_, client):
        with pytest.raises(anthropic.BadRequestError, match=said.replace("^", r"\^")):
            await client.messages.batches.create(requests=requests)


async def test_limits_of_count_and_size() -> None:
    async with connected(BatchSettings(max_requests=2, max_bytes=2000)) as (sandbox, client):
        batches = client.messages.batches
        await batches.create(requests=[request("a"), request("b")])
        for wrong in ([request(x) for x in "abc"], [request("a", "x" * 2000)]):
            with pytest.raises(anthropic.RequestTooLargeError) as error:
                await batches.create(requests=wrong)
            assert error.value.status_code == 413
        assert len(sandbox.state()["batches"]) == 1


async def test_a_fault_strikes_the_creation() -> None:
    async with connected() as (sandbox, client):
        sandbox.add_fault(Fault(kind=FaultKind.RATE_LIMIT, at="batch", retry_after_s=7))
        with pytest.raises(anthropic.RateLimitError) as error:
            await client.messages.batches.create(requests=[request("a")])
        assert error.value.response.headers["retry-after"] == "7"
        assert sandbox.state()["batches"] == []
        sandbox.add_fault(Fault(kind=FaultKind.CUT_BEFORE_HEADERS, at="batch"))
        with pytest.raises(anthropic.APIConnectionError):
            await client.messages.batches.create(requests=[request("a")])
        assert len(sandbox.state()["batches"]) == 1, "made, though nobody was told"
