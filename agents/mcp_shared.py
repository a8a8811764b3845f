"""MCP servers that agents share: `@agent(mcp=[Stdio("uvx", "mcp-server-git")])`."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agentcloud.agents.concurrent import map_ordered
from agentcloud.agents.mcp import McpTool
from agentcloud.agents.mcp_connection import Connection
from agentcloud.agents.mcp_servers import McpServer
from agentcloud.agents.tool_base import AnyTool
from agentcloud.cluster.errors import ToolServerLost

if TYPE_CHECKING:
    from mcp_types import CallToolResult


class McpServers:
    """The servers of the agents that run in here, each connected once; leaving it ends them.

    The same description object is the same server, whichever agents name it.
    """

    def __init__(self) -> None:
        self._shared: dict[McpServer, _Shared] = {}

    def __repr__(self) -> str:
        return f"<McpServers {[server.label for server in self._shared]}>"

    async def __aenter__(self) -> McpServers:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(shared.close() for shared in self._shared.values()))

    async def tools(self, servers: Sequence[McpServer]) -> list[AnyTool]:
        """The tools of servers; those that are not connected are, all at once.

        Raises:
            ConfigError: the package `mcp` is not installed.
            ToolServerLost: a server cannot be started or reached.
            AgentError: `only` names a tool that the server does not have.
        """
        shared = [self._shared.setdefault(server, _Shared(server)) for server in servers]
        found = await map_ordered(_Shared.tools, shared, concurrency=max(1, len(shared)))
        return [tool for tools in found for tool in tools]


class _Shared:
    """One server, connected to when it is needed, and again once it was lost."""

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self._tools: list[AnyTool] = []
        self._opening: asyncio.Task[Connection] | None = None
        self._is_closed = False

    async def tools(self) -> list[AnyTool]:
        await self._live()
        return self._tools

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        connection = await self._live()
        return await connection.call(name, arguments)

    async def close(self) -> None:
        self._is_closed = True
        if self._opening is None:
            return
        self._opening.cancel()
        await asyncio.wait({self._opening})
        if (connection := _opened(self._opening)) is not None:
            await connection.close()

    async def _live(self) -> Connection:
        # Three cases: it is connected, or somebody is connecting; it was lost, or could not be
        # connected, or never was; all is over.
        if self._is_closed:
            raise ToolServerLost(
                f"{self.server} was closed with the agents that named it", server=self.server.label
            )
        before = self._opening
        if before is None or (before.done() and not _is_live(before)):
            # Nobody's: whoever asked first may be cancelled while others wait. Its log lines are
            # no task's either.
            self._opening = asyncio.create_task(
                self._open(None if before is None else _opened(before)),
                context=contextvars.Context(),
            )
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        assert self._opening is not None
        return await asyncio.shield(self._opening)

    async def _open(self, lost: Connection | None) -> Connection:
        if lost is not None:
            await lost.close()
        connection = Connection(self.server)
        try:
            self._tools = [McpTool(self, told) for told in await connection.open()]
        except BaseException:
            await connection.close()
            raise
        return connection


def _opened(opening: asyncio.Task[Connection]) -> Connection | None:
    return None if opening.cancelled() or opening.exception() else opening.result()


def _is_live(opening: asyncio.Task[Connection]) -> bool:
    connection = _opened(opening)
    return connection is not None and not connection.is_lost
