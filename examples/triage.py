"""Structured triage of support tickets: one validated object per input line.

    agentcloud run examples/triage.py:triage --input examples/tickets.jsonl \
        --output results.jsonl --budget 2usd

The embedded model of the shipped fleet.yaml was trained for this very prompt, so the answers make
sense without a GPU and without a key.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from agentcloud.agents import Context, agent

SYSTEM = (
    "You triage support tickets. Read the ticket and answer with JSON that gives "
    "its category (billing, bug, account, shipping, feature_request or how_to), "
    "its urgency (low, normal, high or critical) and its product "
    "(atlas, beacon, ember, harbor or lumen)."
)


class Ticket(BaseModel):
    """An input line; a line without `text` fails with one clear error."""

    text: str


class Triage(BaseModel):
    category: Literal["billing", "bug", "account", "shipping", "feature_request", "how_to"]
    urgency: Literal["low", "normal", "high", "critical"]
    product: Literal["atlas", "beacon", "ember", "harbor", "lumen"]


@agent(tier="small", max_tokens=64)
async def triage(ctx: Context, item: Ticket) -> Triage:
    return await ctx.ask(item.text, output=Triage, system=SYSTEM)


@agent(tier="small", max_tokens=64)
async def triage_checked(ctx: Context, item: Ticket) -> Triage:
    """Two tiers: a small model reads everything, a large one again what looks critical."""
    first = await ctx.ask(item.text, output=Triage, system=SYSTEM)
    if first.urgency != "critical":
        return first
    ctx.log.info("second opinion", category=first.category)
    return await ctx.ask(item.text, output=Triage, system=SYSTEM, tier="large")
