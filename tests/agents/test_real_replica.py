"""Agents over the real engine: what a schema, a tool and a stream are at a local replica."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import pytest_asyncio
from pydantic import BaseModel, Field

from agentcloud.agents import Context, tool
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.clock import SystemClock
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.errors import ContextTooLong, InvalidRequest, NoEndpoint
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.local import LocalEndpoint
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.cluster.scheduler_local import LocalScheduler
from tests.conftest import RunningReplica

pytestmark = [pytest.mark.engine, pytest.mark.ray]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    colour: Colour
    size: Literal["s", "m", "l"] | None


class Box(BaseModel):
    kind: Literal["box"] = "box"
    colour: Colour


class Bag(BaseModel):
    kind: Literal["bag"] = "bag"
    torn: bool


class Whole(BaseModel):
    left: Part = Field(description="the left one")
    right: Part
    fine: bool
    within: Annotated[Box | Bag, Field(discriminator="kind")]


@tool
def lookup(word: str) -> str:
    """Look a word up."""
    return word


@pytest_asyncio.fixture
async def ctx(replica: RunningReplica, tiny_model: Path) -> AsyncIterator[Context]:
    config = parse_fleet({"models": {"tiny": {"path": str(tiny_model)}}})
    core = SchedulerCore(config, load_catalog(), SystemClock(), random.Random(0))
    core.register([replica.spec])
    inference = Inference(LocalScheduler(core), LocalEndpoint, config)
    yield Context(AsyncAgentCloud(inference))
    await inference.close()
    assert core.inflight == 0


async def test_a_schema_holds_even_a_model_that_knows_nothing(ctx: Context) -> None:
    whole = await ctx.ask("Describe it.", output=Whole, max_tokens=96, temperature=0)
    assert isinstance(whole.left.colour, Colour)
    assert set(ctx.usage.endpoints) == {"replica:tiny:0"}
    assert ctx.usage.output_tokens > 0


async def test_after_tools_the_last_turn_is_held_to_the_schema(ctx: Context) -> None:
    whole = await ctx.ask(
        "Describe it.", output=Whole, tools=[lookup], max_tokens=64, temperature=0
    )
    assert isinstance(whole, Whole)
    assert ctx.usage.calls >= 2


async def test_a_stream_comes_in_pieces(ctx: Context) -> None:
    pieces = [piece async for piece in ctx.stream("Tell me.", max_tokens=16)]
    assert "".join(pieces)
    assert ctx.usage.receipts[0].timings.ttft_s is not None


async def test_a_prompt_beyond_the_context_is_one_clear_error(ctx: Context) -> None:
    with pytest.raises((ContextTooLong, InvalidRequest, NoEndpoint)) as caught:
        await ctx.ask("word " * 5000)
    assert "\n" not in str(caught.value)
