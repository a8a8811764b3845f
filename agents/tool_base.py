"""What the model may call, whatever runs it: a function, an MCP server, another agent."""

from __future__ import annotations

import asyncio
import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from pydantic_core import PydanticSerializationError, to_json

from agentcloud.agents.tool_scope import ToolScope
from agentcloud.cluster.config_rules import Retry
from agentcloud.cluster.errors import AgentCloudError, AgentError, ToolFailed
from agentcloud.cluster.retry import backoff_s

#: Content of a tool result: text, or blocks of the Messages API.
ToolContent: TypeAlias = str | list[dict[str, Any]]
Self = TypeVar("Self", bound="AnyTool")

_PACE = Retry()
_JITTER = random.Random()  # noqa: S311 - only spreads waits


class AnyTool(ABC):
    """One tool: how the model sees it, and one call of it within its time.

    Attributes:
        name: what the model calls it by.
        description: what it does; the model reads it.
        input_schema: JSON schema of its arguments.
        timeout_s: the longest one call may take, seconds.
        strict: whether endpoints that can must hold the model to the schema.
        retries: how often a failed call may be made again; 0 unless a repeated call does no harm.
        is_step: whether its result is recorded as a step of the task; what makes steps of its own
            (an agent) is not.
    """

    name: str
    description: str
    input_schema: dict[str, Any]
    timeout_s: float = 60.0
    strict: bool = False
    retries: int = 0
    is_step: bool = True
    _scope: ToolScope | None = None

    def __repr__(self) -> str:
        return f"<tool {self.name}>"

    def to_param(self) -> dict[str, Any]:
        """The tool as an entry of the request's `tools`."""
        param = {
            "name": self.name,
            "description": self.description,
            "input_schema": self.input_schema,
        }
        return {**param, "strict": True} if self.strict else param

    def within(self: Self, scope: ToolScope) -> Self:
        """The tool as one ask has it."""
        ours = copy.copy(self)
        ours._scope = scope
        return ours

    async def run(self, arguments: Mapping[str, Any]) -> ToolContent:
        """Call it with the model's arguments; within an ask, up to `retries` times more.

        Each further call spends one of the task's extra attempts, after a doubling wait with
        jitter. Wrong arguments are not tried again: they would be wrong again. When nothing is left
        to try, the failure is the model's to see.

        Raises:
            ToolFailed: wrong arguments, an exception, a timeout, or a result that cannot be told.
        """
        for further in range(1, self.retries + 1):
            try:
                return await self._run_in_time(arguments)
            except ToolFailed as error:
                if error.permanent or self._scope is None or not self._scope.attempts.take():
                    raise
            await self._scope.clock.sleep(backoff_s(further, _PACE, _JITTER))
        return await self._run_in_time(arguments)

    async def _run_in_time(self, arguments: Mapping[str, Any]) -> ToolContent:
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                return await self._run(arguments)
        except AgentCloudError:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                message = f"{self.name} took longer than {self.timeout_s:g} s"
            else:
                message = f"{self.name} failed: {type(error).__name__}: {error}"
            raise ToolFailed(message, tool=self.name) from error

    @abstractmethod
    async def _run(self, arguments: Mapping[str, Any]) -> ToolContent:
        """The call itself; what it raises becomes `ToolFailed`, our own errors stay."""


def index_tools(tools: Sequence[AnyTool]) -> dict[str, AnyTool]:
    """Tools by name.

    Raises:
        AgentError: something is no tool, or two have the same name.
    """
    by_name: dict[str, AnyTool] = {}
    for one in tools:
        if not isinstance(one, AnyTool):
            raise AgentError(f"{one!r} is not a tool; decorate the function with @tool")
        if one.name in by_name:
            raise AgentError(f"two tools are named {one.name}; give one another name=")
        by_name[one.name] = one
    return by_name


def result_content(result: object, tool: str) -> ToolContent:
    """What a tool returned: text as it is, content blocks as they are, anything else as JSON.

    Raises:
        ToolFailed: it is no JSON.
    """
    if isinstance(result, str):
        return result
    if isinstance(result, list) and result and all(map(_is_block, result)):
        return result
    try:
        return to_json(result).decode()
    except PydanticSerializationError as error:
        raise ToolFailed(
            f"{tool} returned {type(result).__name__}, which is no JSON: {error}",
            tool=tool,
            permanent=True,
        ) from None


def _is_block(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") in ("text", "image", "document")
