"""Tools of MCP servers: `async with mcp_tools(Stdio("python", "server.py")) as tools`.

The official `mcp` package speaks the protocol; it is an extra (`pip install 'agentcloud[mcp]'`) and
imported only when a server is opened.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from agentcloud.agents.concurrent import map_ordered
from agentcloud.agents.mcp_connection import Connection
from agentcloud.agents.mcp_content import texts_of, to_content
from agentcloud.agents.mcp_servers import Http, McpServer, Stdio
from agentcloud.agents.tool_base import AnyTool, ToolContent
from agentcloud.cluster.errors import ToolFailed

__all__ = ["Http", "McpServer", "McpTool", "Stdio", "mcp_tools"]

if TYPE_CHECKING:
    import mcp
    from mcp_types import CallToolResult

#: What the Messages API does not take in a tool's name.
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")


@asynccontextmanager
async def mcp_tools(*servers: McpServer) -> AsyncIterator[list[AnyTool]]:
    """The tools of MCP servers, for as long as the `async with` lasts.

    What a tool reports as an error goes back to the model, as with `@tool`. A server that dies
    ends the ask: the model could not mend that. Leaving the block ends the servers.

    Args:
        *servers: `Stdio(...)` or `Http(...)`; all are started at once.

    Raises:
        ConfigError: the package `mcp` is not installed.
        ToolServerLost: a server cannot be started or reached.
        AgentError: `only` names a tool that the server does not have.
    """
    connections = [Connection(server) for server in servers]
    try:
        found = await map_ordered(Connection.open, connections, concurrency=max(1, len(servers)))
        yield [
            McpTool(connection, tool)
            for connection, tools in zip(connections, found, strict=True)
            for tool in tools
        ]
    finally:
        # All at once: were the agent cancelled again here, none would be left open.
        await asyncio.gather(*(connection.close() for connection in connections))


class Caller(Protocol):
    """A server whose tools can be called."""

    @property
    def server(self) -> McpServer:
        """Its description."""
        ...

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """What a tool of it returns."""
        ...


class McpTool(AnyTool):
    """A tool of a server, as it describes it.

    Args:
        caller: the server.
        told: its description of the tool.
    """

    def __init__(self, caller: Caller, told: mcp.Tool) -> None:
        server = caller.server
        self.name = _NOT_IN_NAMES.sub("_", server.prefix + told.name)
        self.description = told.description or told.title or told.name
        self.input_schema = told.input_schema
        self.timeout_s = server.timeout_s
        hints = told.annotations
        if hints is not None and (hints.read_only_hint or hints.idempotent_hint):
            self.retries = server.retries
        self._caller = caller
        self._told_name = told.name

    async def _run(self, arguments: Mapping[str, Any]) -> ToolContent:
        result = await self._caller.call(self._told_name, dict(arguments))
        blocks = [part.model_dump(mode="json", by_alias=True) for part in result.content]
        content = to_content(blocks, result.structured_content)
        if result.is_error:
            told = content if isinstance(content, str) else "\n".join(texts_of(content))
            raise ToolFailed(f"{self.name} failed: {told}", tool=self.name)
        return content
