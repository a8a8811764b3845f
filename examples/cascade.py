"""Cheap first: a small model answers, a large one where the answer is not good enough.

    agentcloud run examples/cascade.py:triage --input examples/tickets.jsonl --output results.jsonl

`tier="auto"` goes up the fleet's tiers, cheapest first, until an answer validates. How sure the
small model must be is learned from a labelled sample, whose field `expected` holds the answers:

    agentcloud tune examples/cascade.py:triage --input labelled.jsonl --label expected
    agentcloud run examples/cascade.py:triage --input tickets.jsonl --cascade cascade.json

A result line shows both calls, what each cost, and why the second was made.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from agentcloud.agents import Cascade, Context, agent, agreement

SYSTEM = (
    "You triage support tickets. Read the ticket and answer with JSON that gives "
    "its category (billing, bug, account, shipping, feature_request or how_to), "
    "its urgency (low, normal, high or critical) and its product "
    "(atlas, beacon, ember, harbor or lumen)."
)


class Ticket(BaseModel):
    text: str


class Triage(BaseModel):
    category: Literal["billing", "bug", "account", "shipping", "feature_request", "how_to"]
    urgency: Literal["low", "normal", "high", "critical"]
    product: Literal["atlas", "beacon", "ember", "harbor", "lumen"]


@agent(tier="auto", max_tokens=64)
async def triage(ctx: Context, item: Ticket) -> Triage:
    return await ctx.ask(item.text, output=Triage, system=SYSTEM)


@agent(max_tokens=64)
async def triage_checked(ctx: Context, item: Ticket) -> Triage:
    """Checks of one's own: two of three samples agree, and the product is one that was named."""

    def names_the_product(found: Triage) -> bool:
        return found.product in item.text.lower()

    # A validator holds for the last tier's answer too, where `agreement` only escalates.
    checked = Cascade(
        tiers=("small", "large"), check=(agreement(n=3, temperature=1.0), names_the_product)
    )
    return await ctx.ask(item.text, output=Triage, system=SYSTEM, tier=checked)
