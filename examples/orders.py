"""An agent with tools: the model calls Python functions until it can answer.

    agentcloud run examples/orders.py:answer --input questions.jsonl --output results.jsonl

Input lines: {"text": "Where is order 10234?"}. The embedded model knows just enough for this.
"""

from __future__ import annotations

from typing import Any, Literal

from agentcloud.agents import Context, agent, tool

_STATES: tuple[Literal["shipped", "delayed", "delivered"], ...] = (
    "shipped",
    "delayed",
    "delivered",
)


@tool(timeout_s=5)
def lookup_order(order_id: str) -> dict[str, str]:
    """Look up an order by its number.

    Args:
        order_id: the number that the customer gave.
    """
    digits = "".join(character for character in order_id if character.isdigit())
    if not digits:
        # Goes back to the model as an error, so that it can ask or try another number.
        raise ValueError(f"{order_id!r} is no order number")
    return {"order_id": order_id, "status": _STATES[int(digits) % len(_STATES)]}


@tool
async def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"sunny in {city}"


@agent(tier="small", max_tokens=96, tools=[lookup_order, get_weather], max_turns=6)
async def answer(ctx: Context, item: dict[str, Any]) -> dict[str, Any]:
    text = await ctx.ask(item["text"])
    return {"answer": text, "calls": ctx.usage.calls}
