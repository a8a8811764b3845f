"""One way to a local engine, in a process of its own that runs rounds when told to.

`python -m bench.local_contender ceiling|ours FOLDER`. A line of JSON on stdin is a round, a line
of JSON on stdout its figures.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agentcloud.cluster.client_async import AsyncAgentCloud
from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.contracts import Call, EndpointSpec
from agentcloud.cluster.engine_fork import fork_server
from agentcloud.cluster.engine_settings import engine_settings
from agentcloud.cluster.lifecycle import down, start_local_ray, up
from agentcloud.cluster.local import LocalEndpoint
from bench.rounds import MODEL, Send, Stream, serve

_numbers = itertools.count()


#: The same model, whose replica tells nobody what its cache holds.
SILENT: Final = f"{MODEL}-silent"


def fleet(folder: Path) -> FleetConfig:
    """The engine that every contender uses, and the same without KV events."""
    model = {
        "path": str(folder),
        "tensor_parallel": 1,
        "kv_cache_gib": 0.25,
        "context_tokens": 1024,
        "max_concurrency": 256,
    }
    return parse_fleet({"models": {MODEL: model, SILENT: {**model, "kv_events": False}}})


@asynccontextmanager
async def ceiling(folder: Path) -> AsyncIterator[dict[str, tuple[Send, Stream]]]:
    """VLLM's own Messages handler in this very process: no Ray, no scheduler, no client."""
    # The ceiling tells nobody what its cache holds: that is part of what ours costs.
    settings = replace(
        engine_settings(
            MODEL, fleet(folder).models[MODEL], tensor_parallel=1, cores=range(os.cpu_count() or 1)
        ),
        kv_events=False,
    )
    os.environ.update(settings.env)
    fork_server()
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    from agentcloud.cluster.engine import LocalEngine

    engine = await LocalEngine.start(settings)
    handler = engine._handler
    # Ours adds to vLLM's handler; the ceiling is without.
    handler.__class__ = AnthropicServingMessages

    async def send(params: dict[str, Any]) -> int:
        answer = await handler.create_messages(AnthropicMessagesRequest(**params), None)
        return int(answer.usage.output_tokens)

    async def stream(params: dict[str, Any]) -> AsyncIterator[str]:
        asked = AnthropicMessagesRequest(**params, stream=True)
        async for text in await handler.create_messages(asked, None):
            yield text.split("\n", 1)[0].removeprefix("event: ")

    yield {"ceiling": (send, stream)}
    await engine.shutdown()


@asynccontextmanager
async def ours(folder: Path) -> AsyncIterator[dict[str, tuple[Send, Stream]]]:
    """A fleet on a local Ray: the SDK's whole path, and the endpoint below it alone."""
    start_local_ray(dashboard=False)
    specs: tuple[EndpointSpec, ...] = up(fleet(folder)).endpoints
    (spec,) = (each for each in specs if each.model == MODEL)
    endpoint = LocalEndpoint(spec)
    client = AsyncAgentCloud()

    async def send(params: dict[str, Any]) -> int:
        call = Call(f"bench-{next(_numbers)}", params, 600.0)
        return (await endpoint.create(call)).message.usage.output_tokens

    async def stream(params: dict[str, Any]) -> AsyncIterator[str]:
        async for event in endpoint.stream(Call(f"bench-{next(_numbers)}", params, 600.0)):
            yield event.type

    async def send_sdk(params: dict[str, Any]) -> int:
        return int((await client.messages.create(**params)).usage.output_tokens)

    async def stream_sdk(params: dict[str, Any]) -> AsyncIterator[str]:
        async with client.messages.stream(**params) as events:
            async for event in events:
                yield event.type

    async def send_silent(params: dict[str, Any]) -> int:
        return await send_sdk({**params, "model": SILENT})

    def stream_silent(params: dict[str, Any]) -> AsyncIterator[str]:
        return stream_sdk({**params, "model": SILENT})

    try:
        yield {
            "sdk": (send_sdk, stream_sdk),
            "sdk_without_kv_events": (send_silent, stream_silent),
            "endpoint": (send, stream),
        }
    finally:
        await client.close()
        await endpoint.close()
        down()


async def main(kind: str, folder: Path) -> None:
    """Run rounds until stdin ends."""
    async with (ceiling if kind == "ceiling" else ours)(folder) as paths:
        await serve(paths)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
