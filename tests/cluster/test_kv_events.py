"""The real engine tells what its KV cache holds."""

from __future__ import annotations

import asyncio
from typing import Any

from agentcloud.cluster.contracts import Call, LoadReport
from agentcloud.cluster.local import LocalEndpoint
from agentcloud.cluster.prefix import Change
from agentcloud.cluster.prefix_chunks import prefix_chunks
from agentcloud.cluster.sizing import estimated_input_tokens
from tests.conftest import RunningReplica, message_call


def chunked(call_id: str, text: str, **params: Any) -> Call:
    """A call with its prompt's chunks, as it is sent under a lease."""
    call = message_call(call_id, text, max_tokens=2, **params)
    tokens = estimated_input_tokens(call.params)
    chunks = prefix_chunks(call.params, tokens)
    shares = tuple(each / tokens for each in chunks.tokens)
    return Call(call.call_id, call.params, call.timeout_s, chunks.hashes, shares)


async def report(replica: RunningReplica, *, anew: bool = False) -> Change:
    load, change = await replica.actor.report.remote(anew=anew)
    assert isinstance(load, LoadReport)
    assert isinstance(change, Change), "it tells what it holds"
    return change


async def test_a_replica_tells_which_prefixes_it_holds_and_when_they_go(
    local_endpoint: LocalEndpoint, replica: RunningReplica
) -> None:
    shared = "rules of the house. " * 90
    first = chunked("kv-1", shared + "first question?" * 20)
    second = chunked("kv-2", shared + "another question?" * 20)
    common = [one for one, other in zip(first.prefix, second.prefix, strict=False) if one == other]
    assert common
    await local_endpoint.create(first)
    held = set((await report(replica, anew=True)).added)
    async with asyncio.timeout(10):
        while not set(first.prefix) <= held:  # the events come a moment later
            await local_endpoint.create(first)
            held |= set((await report(replica)).added)
    # A second prompt that begins alike: only what is new is told.
    answer = await local_endpoint.create(second)
    assert (answer.message.usage.cache_read_input_tokens or 0) > 0
    added = set((await report(replica)).added)
    assert not added & set(common)
    # Others fill the cache: what was there first is told to be gone.
    kv_tokens = replica.info.kv_tokens
    assert kv_tokens is not None
    gone: set[int] = set()
    number, size = 0, 0
    while not set(common) <= gone:
        calls = [
            chunked(f"kv-fill-{number + each}", f"{number + each} is a number. " * 110)
            for each in range(16)
        ]
        answers = await asyncio.gather(*(local_endpoint.create(call) for call in calls))
        number += 16
        size += sum(answer.message.usage.input_tokens for answer in answers)
        gone |= set((await report(replica)).removed or ())
        assert size < 4 * kv_tokens, "they should have been evicted long ago"
    whole = set((await report(replica, anew=True)).added)
    assert not whole & set(common)
