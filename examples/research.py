"""Research: questions answered in parallel, each by its own agent loop, then one brief.

    agentcloud run examples/research.py:research --input topics.jsonl --output results.jsonl

Input lines: {"topics": ["pairing", "battery", "refund"]}
"""

from __future__ import annotations

from pydantic import BaseModel

from agentcloud.agents import Context, agent, tool
from agentcloud.cluster.errors import AgentError, Refused

MANUAL = {
    "pairing": "Hold the button for five seconds until the light blinks blue (page 4).",
    "battery": "The battery lasts six months; replace it with a CR2 cell (page 9).",
    "refund": "Refunds are paid within 14 days of the return (page 21).",
}


class Topics(BaseModel):
    topics: list[str]


class Finding(BaseModel):
    topic: str
    answer: str | None


@tool
async def search_docs(query: str) -> str:
    """Search the manual.

    Args:
        query: one or two words.
    """
    hits = [text for word, text in MANUAL.items() if word in query.lower()]
    return "\n".join(hits) or "no result"


@agent(tier="small", max_tokens=128)
async def research(ctx: Context, item: Topics) -> dict[str, object]:
    async def look_into(topic: str) -> Finding:
        try:
            text = await ctx.ask(
                f"What does the manual say about {topic}?", tools=[search_docs], max_turns=4
            )
        except (AgentError, Refused) as error:
            # One topic that fails must not take the others with it: ctx.map would cancel them.
            ctx.log.warning("topic failed", topic=topic, error=str(error))
            return Finding(topic=topic, answer=None)
        return Finding(topic=topic, answer=text)

    findings = await ctx.map(look_into, item.topics, concurrency=8)
    notes = "\n".join(f"{f.topic}: {f.answer or 'nothing found'}" for f in findings)
    brief = await ctx.ask(
        f"Write one paragraph for a customer from these notes.\n\n{notes}", tier="large"
    )
    return {"findings": findings, "brief": brief, "usage": ctx.usage.to_dict()}
