"""Streaming: text as it is made.

As an agent of a job:

    agentcloud run examples/streaming.py:draft --input prompts.jsonl --output results.jsonl

As a program of its own on a running cluster (`agentcloud up`), through Anthropic's own helper:

    python examples/streaming.py "Tell me a story."
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import Any

from agentcloud.agents import Context, agent
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.contracts import Routing

ENOUGH_CHARS = 200


@agent(tier="small", max_tokens=256)
async def draft(ctx: Context, item: dict[str, Any]) -> dict[str, Any]:
    """Stop a draft at the end of the first sentence that makes it long enough."""
    text = ""
    # Closed at once when the loop is left, so that nothing more is generated or paid.
    async with aclosing(ctx.stream(item["text"])) as pieces:
        async for piece in pieces:
            text += piece
            if len(text) >= ENOUGH_CHARS and text.rstrip().endswith((".", "!", "?")):
                break
    return {"draft": text.strip()}


async def main(prompt: str, client: AsyncAgentCloud) -> None:
    async with client.messages.stream(
        model="small",
        max_tokens=256,
        messages=[{"role": "user", "content": prompt}],
        routing=Routing(deadline_s=60),
    ) as stream:
        async for text in stream.text_stream:
            print(text, end="", flush=True)
        receipt = (await stream.get_final_message()).agentcloud
    ttft_s = receipt.timings.ttft_s
    first = "not measured" if ttft_s is None else f"{ttft_s * 1000:.0f} ms"
    print(f"\n\n{receipt.endpoint} ({receipt.reason}); first token: {first}")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Tell me a story.", AsyncAgentCloud()))
