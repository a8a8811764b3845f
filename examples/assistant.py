"""Tools of an MCP server, and an agent as a tool of another (`pip install 'agentcloud[mcp]'`).

    agentcloud run examples/assistant.py:answer --input questions.jsonl --output results.jsonl

Input lines: {"text": "Is the Beacon there? Use count_stock."}
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel, Field

from agentcloud.agents import Context, Stdio, agent, as_tool, mcp_tools

STOCK = Stdio(
    sys.executable, str(Path(__file__).with_name("stock_server.py")), timeout_s=10, retries=1
)


class Question(BaseModel):
    text: str


class Complaint(BaseModel):
    summary: str = Field(description="what the customer is unhappy about, in a sentence")


@agent(tier="large", max_tokens=128)
async def write_apology(ctx: Context, item: Complaint) -> str:
    """Write the letter to a customer who complains."""
    return await ctx.ask(f"Write two kind sentences about this complaint: {item.summary}")


@agent(tier="small", max_tokens=128, max_turns=4)
async def answer(ctx: Context, item: Question) -> dict[str, object]:
    async with mcp_tools(STOCK) as stock:
        text = await ctx.ask(item.text, tools=[*stock, as_tool(write_apology)])
    return {"answer": text, "calls": ctx.usage.calls, "endpoints": ctx.usage.endpoints}
