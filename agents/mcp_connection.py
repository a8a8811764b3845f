"""A connection to an MCP server that runs, driven by a task of its own."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from agentcloud.agents.mcp_servers import McpServer
from agentcloud.agents.mcp_stderr import LastWords
from agentcloud.cluster.errors import AgentError, ConfigError, ToolFailed, ToolServerLost

if TYPE_CHECKING:
    import mcp
    from mcp_types import CallToolResult

#: Longest that closing one server may take; mcp kills a process that does not go within seconds.
_CLOSE_S = 15.0
#: A server that pages for ever is stopped here.
_MAX_PAGES = 100


class Connection:
    """A server that runs, driven by a task of its own.

    When a connection breaks, mcp cancels the task that opened it: that must never be the agent's.

    Args:
        server: what to start, or where it listens.
    """

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self._broke = False
        self._words = LastWords(server.plain().values())
        self._stop = asyncio.Event()
        self._ready: asyncio.Future[tuple[mcp.Client, list[mcp.Tool]]] = (
            asyncio.get_running_loop().create_future()
        )
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<connection to {self.server}{', lost' if self.is_lost else ''}>"

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be called any more, as far as a call or the task has noticed."""
        return self._broke or (self._task is not None and self._task.done())

    async def open(self) -> list[mcp.Tool]:
        """Start it, or reach it; its tools, those that `only` names.

        Raises:
            ConfigError: the package `mcp` is not installed.
            ToolServerLost: it cannot be started or reached.
            AgentError: `only` names a tool that it does not have.
        """
        try:
            import mcp  # noqa: F401 - only to see whether it is there
        except ImportError:
            raise ConfigError(
                "MCP tools need the package mcp; run pip install 'agentcloud[mcp]'"
            ) from None
        self._task = asyncio.create_task(self._drive(), name=f"mcp {self.server.label}")
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        either: set[asyncio.Future[Any]] = {self._task, self._ready}
        await asyncio.wait(
            either,
            timeout=self.server.start_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not self._ready.done():
            if not self._task.done():
                limit_s = self.server.start_timeout_s
                raise self._lost(f"gave no list of tools in {limit_s:g} s; raise start_timeout_s")
            raise self._lost(self._why_not(self._task.exception())) from self._task.exception()
        _, told = self._ready.result()
        wanted = self.server.only
        if wanted is not None and (missing := wanted - {tool.name for tool in told}):
            has = ", ".join(tool.name for tool in told)
            raise AgentError(f"{self.server} has no tool {min(missing)!r}; it has: {has}")
        return [tool for tool in told if wanted is None or tool.name in wanted]

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """What a tool of it returns.

        Raises:
            ToolFailed: the server refused the call.
            ToolServerLost: it ended meanwhile, or was closed.
        """
        import mcp
        from mcp_types import CONNECTION_CLOSED

        assert self._task is not None
        client, _ = self._ready.result()
        if self._stop.is_set():
            raise self._lost(
                "was closed: its tools work inside `async with mcp_tools(...)`, or while the agent "
                "runs that names it, only"
            )
        calling = asyncio.ensure_future(client.call_tool(name, arguments))
        try:
            await asyncio.wait({calling, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not calling.done():
                calling.cancel()
                await asyncio.wait({calling})
        try:
            return calling.result()
        except mcp.MCPError as error:
            if error.code != CONNECTION_CLOSED and not self._task.done():
                raise ToolFailed(f"{name} failed: {error.message}", tool=name) from error
            cause: BaseException = error
        except asyncio.CancelledError as error:
            cause = error  # the driving task ended under it
        self._broke = True
        await self._words.whole()
        raise self._lost(f"ended while {name} ran; run it by hand to see why") from cause

    async def close(self) -> None:
        """End it, be it started or not. Safe to call twice."""
        self._stop.set()
        if self._task is None:
            return
        if not self._ready.done():  # still starting, so it looks at nothing but this
            self._task.cancel()
        try:
            await asyncio.wait({self._task}, timeout=_CLOSE_S)
        finally:
            self._task.cancel()

    async def _drive(self) -> None:
        async with AsyncExitStack() as stack:
            client = await self.server.connect(stack, self._words)
            async with client:
                self._words.close_our_end()
                self._ready.set_result((client, await _list_tools(client)))
                await self._stop.wait()

    def _why_not(self, error: BaseException | None) -> str:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.filename:
            return f"cannot be started: {error.filename}: {error.strerror}; install it or mend it"
        return self.server.why_not(str(error))

    def _lost(self, what: str) -> ToolServerLost:
        said = self._words.last()
        return ToolServerLost(
            f"{self.server} {what}{f' (it said: {said})' if said else ''}", server=self.server.label
        )


async def _list_tools(client: mcp.Client) -> list[mcp.Tool]:
    tools: list[mcp.Tool] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools
