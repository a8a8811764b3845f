"""What an agent brings with it: its settings, and how a context runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agentcloud.agents.cascade import Cascade
from agentcloud.agents.fitting import LongContext
from agentcloud.agents.mcp_servers import McpServer
from agentcloud.agents.tool_base import AnyTool

if TYPE_CHECKING:
    from agentcloud.agents.context import Context

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What asks use that do not say it themselves.

    Attributes:
        tier: tier, model or cascade.
        max_tokens: the most tokens of an answer.
        tools: functions that the model may call.
        max_turns: the most answers of one agent loop.
        long_context: what becomes of the oldest turns of a conversation that is too long.
        mcp: servers whose tools the model may call too.
        cache: whether the response cache may answer, also at a temperature above 0; None: at 0.
    """

    tier: str | Cascade = "small"
    max_tokens: int = 512
    tools: tuple[AnyTool, ...] = ()
    max_turns: int = 20
    long_context: LongContext = "truncate"
    mcp: tuple[McpServer, ...] = ()
    cache: bool | None = None


class Runnable(Protocol[R_co]):
    """An agent, as a context runs it within another."""

    @property
    def name(self) -> str:
        """What logs call it."""
        ...

    @property
    def defaults(self) -> Defaults:
        """What its asks use that do not say it themselves."""
        ...

    async def __call__(self, ctx: Context, item: Any) -> R_co:
        """Run it."""
        ...
