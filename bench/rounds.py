"""The rounds of bench/local.py, the same for every contender.

Without agentcloud, so that peers can use them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

MODEL = "tiny"
OUTPUT_TOKENS = 64

_numbers = itertools.count()

#: Sends one request; returns the tokens that came back.
Send = Callable[[dict[str, Any]], Awaitable[int]]
#: Sends one request as a stream; returns once its first text is there, with the rest to be read.
Stream = Callable[[dict[str, Any]], AsyncIterator[Any]]


def request() -> dict[str, Any]:
    """A request like no other, so that no cache answers it."""
    text = f"Ticket {next(_numbers)}: the printer on the second floor is out of order again."
    return {
        "model": MODEL,
        "max_tokens": OUTPUT_TOKENS,
        "messages": [{"role": "user", "content": text}],
    }


async def unary_round(send: Send, inflight: int, calls: int) -> dict[str, float]:
    """Requests a second with `inflight` always in flight."""
    left = iter(range(calls))
    tokens = 0

    async def worker() -> None:
        nonlocal tokens
        for _ in left:
            received = await send(request())
            tokens += received

    started_s = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(inflight)))
    seconds = time.perf_counter() - started_s
    return {"rps": calls / seconds, "tokens_per_call": tokens / calls}


async def stream_round(stream: Stream, inflight: int, calls: int) -> dict[str, float]:
    """Time to the first piece of text as the caller sees it, with `inflight` always in flight."""
    left = iter(range(calls))
    firsts: list[float] = []

    async def worker() -> None:
        for _ in left:
            started_s = time.perf_counter()
            first = True
            async for kind in stream(request()):
                if first and kind == "content_block_delta":
                    firsts.append(time.perf_counter() - started_s)
                    first = False

    started_s = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(inflight)))
    seconds = time.perf_counter() - started_s
    firsts.sort()
    return {
        "ttft_p50_ms": statistics.median(firsts) * 1000,
        "ttft_p95_ms": firsts[int(len(firsts) * 0.95)] * 1000,
        "stream_rps": calls / seconds,
    }


async def serve(paths: Mapping[str, tuple[Send, Stream]]) -> None:
    """Run a round for each line of JSON on stdin until it ends; a line of figures for each."""
    loop = asyncio.get_running_loop()
    print(json.dumps({"ready": list(paths)}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        send, stream = paths[order["path"]]
        figures = await unary_round(send, order["inflight"], order["calls"])
        if order["stream_calls"]:
            figures |= await stream_round(stream, order["inflight"], order["stream_calls"])
        print(json.dumps(figures), flush=True)
