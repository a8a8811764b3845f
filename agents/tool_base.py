"""What the model may call, whatever runs it: a function, an MCP server, another agent."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from agentcloud.cluster.errors import AgentCloudError, AgentError, ToolFailed

#: Content of a tool result: text, or blocks of the Messages API.
ToolContent: TypeAlias = str | list[dict[str, Any]]


class AnyTool(ABC):
    """One tool: how the model sees it, and one call of it within its time.

    Attributes:
        name: what the model calls it by.
        description: what it does; the model reads it.
        input_schema: JSON schema of its arguments.
        timeout_s: the longest one call may take, seconds.
        strict: whether endpoints that can must hold the model to the schema.
    """

    name: str
    description: str
    input_schema: dict[str, Any]
    timeout_s: float = 60.0
    strict: bool = False

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

    async def run(self, arguments: Mapping[str, Any]) -> ToolContent:
        """Make one call with the model's arguments.

        Raises:
            ToolFailed: wrong arguments, an exception, a timeout, or a result that cannot be told.
        """
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
