"""Agents that the tests run, good ones and bad ones; copied into a project folder."""

import asyncio
import os
import signal
from typing import Any

from pydantic import BaseModel, field_validator

from agentcloud.agents.agent import Context, agent


class Reply(BaseModel):
    text: str


class NeverValid(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise ValueError("no text is good enough")


@agent(tier="large")
async def answers(ctx: Context, item: dict[str, Any]) -> Reply:
    return await ctx.ask(f"Answer: {item['text']}", output=Reply, max_tokens=64)


@agent(tier="patient")
async def patient(ctx: Context, item: dict[str, Any]) -> str:
    return await ctx.ask(f"Answer: {item['text']}", max_tokens=64)


@agent(tier="large")
async def mixed(ctx: Context, item: dict[str, Any]) -> Any:
    """Does what its item says."""
    match item["do"]:
        case "answer":
            return await ctx.ask(f"Answer: {item['text']}", output=Reply, max_tokens=64)
        case "slow":
            return await ctx.ask("Answer slowly", tier="slow", max_tokens=64)
        case "raise":
            raise ValueError("I do not like\nthis one")
        case "exit":
            raise SystemExit(3)
        case "never valid":
            return await ctx.ask("Anything", output=NeverValid, max_tokens=64)
        case "too long":
            return await ctx.ask("word " * 50_000, max_tokens=64)
        case "no json":
            return object()
        case "sleep":
            await asyncio.sleep(600)
        case "kill":
            await asyncio.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
    return None


@agent(tier="slow")
async def waits_at_the_model(ctx: Context, item: dict[str, Any]) -> str:
    return await ctx.ask("Answer slowly", max_tokens=64)


@agent
async def no_calls(ctx: Context, item: dict[str, Any]) -> Any:
    return item


@agent(tier="large")
async def asks_often(ctx: Context, item: dict[str, Any]) -> str:
    """Makes as many calls as its item says; tells the money that it may still spend."""
    for number in range(item["calls"]):
        await ctx.ask(f"Question {number} of {item['id']}", max_tokens=64)
    return str(await ctx.remaining_usd())


@agent(tier="large")
async def never_content(ctx: Context, item: dict[str, Any]) -> Any:
    return await ctx.ask("Anything", output=NeverValid, max_tokens=64, repairs=100)
