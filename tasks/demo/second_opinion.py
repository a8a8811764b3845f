"""The demo's agent: a ticket triaged by the local model, and by the hosted one beside it."""

from __future__ import annotations

import asyncio
from typing import Any

from agentcloud.agents import Context, agent
from agentcloud.tasks.demo.triage import SYSTEM_PROMPT, Triage


@agent(max_tokens=64)
async def second_opinion(ctx: Context, item: dict[str, Any]) -> dict[str, Any]:
    """Ask both tiers at once, so that their answers can be held against the labels."""
    small, large = await asyncio.gather(
        *(
            ctx.ask(item["text"], output=Triage, system=SYSTEM_PROMPT, tier=tier)
            for tier in ("small", "large")
        )
    )
    return {"small": small.model_dump(), "large": large.model_dump()}
