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


@agent(tier="large")
async def raises(ctx: Context, item: dict[str, Any]) -> str:
    if item["text"] == "bad":
        raise ValueError("I do not like\nthis one")
    return "fine"


@agent(tier="large")
async def never_valid(ctx: Context, item: dict[str, Any]) -> NeverValid:
    return await ctx.ask("Anything", output=NeverValid, max_tokens=64)


@agent(tier="large")
async def too_long(ctx: Context, item: dict[str, Any]) -> str:
    return await ctx.ask("word " * 50_000, max_tokens=64)


@agent(tier="large")
async def no_calls(ctx: Context, item: dict[str, Any]) -> Any:
    return item


@agent(tier="large")
async def no_json(ctx: Context, item: dict[str, Any]) -> Any:
    return object()


@agent(tier="large")
async def sleeps(ctx: Context, item: dict[str, Any]) -> float:
    await asyncio.sleep(item["seconds"])
    return float(item["seconds"])


@agent(tier="large")
async def waits_at_the_model(ctx: Context, item: dict[str, Any]) -> str:
    return await ctx.ask("Answer slowly", max_tokens=64)


@agent(tier="large")
async def kills_its_worker(ctx: Context, item: dict[str, Any]) -> str:
    await asyncio.sleep(0.05)
    if item["text"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"
