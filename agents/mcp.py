"""Tools of MCP servers: `async with mcp_tools(Stdio("python", "server.py")) as tools`.

The official `mcp` package speaks the protocol; it is an extra (`pip install 'agentcloud[mcp]'`) and
imported only when a server is opened.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from agentcloud.agents.concurrent import map_ordered
from agentcloud.agents.mcp_content import texts_of, to_content
from agentcloud.agents.mcp_servers import Http, McpServer, Stdio
from agentcloud.agents.mcp_stderr import LastWords
from agentcloud.agents.tool_base import AnyTool, ToolContent
from agentcloud.cluster.errors import AgentError, ConfigError, ToolFailed, ToolServerLost

__all__ = ["Http", "McpServer", "McpTool", "Stdio", "mcp_tools"]

if TYPE_CHECKING:
    import mcp
    from mcp_types import CallToolResult

#: Longest that closing one server may take; mcp kills a process that does not go within seconds.
_CLOSE_S = 15.0
#: A server that pages for ever is stopped here.
_MAX_PAGES = 100
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
    try:
        import mcp  # noqa: F401 - only to see whether it is there
    except ImportError:
        raise ConfigError(
            "MCP tools need the package mcp; run pip install 'agentcloud[mcp]'"
        ) from None
    connections = [_Connection(server) for server in servers]
    try:
        found = await map_ordered(_Connection.open, connections, concurrency=max(1, len(servers)))
        yield [tool for tools in found for tool in tools]
    finally:
        # All at once: were the agent cancelled again here, none would be left open.
        await asyncio.gather(*(connection.close() for connection in connections))


class McpTool(AnyTool):
    """A tool of a server, as it describes it.

    Args:
        connection: the server.
        told: its description of the tool.
    """

    def __init__(self, connection: _Connection, told: mcp.Tool) -> None:
        server = connection.server
        self.name = _NOT_IN_NAMES.sub("_", server.prefix + told.name)
        self.description = told.description or told.title or told.name
        self.input_schema = told.input_schema
        self.timeout_s = server.timeout_s
        hints = told.annotations
        if hints is not None and (hints.read_only_hint or hints.idempotent_hint):
            self.retries = server.retries
        self._connection = connection
        self._told_name = told.name

    async def _run(self, arguments: Mapping[str, Any]) -> ToolContent:
        result = await self._connection.call(self._told_name, dict(arguments))
        blocks = [part.model_dump(mode="json", by_alias=True) for part in result.content]
        content = to_content(blocks, result.structured_content)
        if result.is_error:
            told = content if isinstance(content, str) else "\n".join(texts_of(content))
            raise ToolFailed(f"{self.name} failed: {told}", tool=self.name)
        return content


class _Connection:
    """A server that runs, driven by a task of its own.

    When a connection breaks, mcp cancels the task that opened it: that must never be the agent's.
    """

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self._words = LastWords(server.plain().values())
        self._stop = asyncio.Event()
        self._ready: asyncio.Future[tuple[mcp.Client, list[mcp.Tool]]] = (
            asyncio.get_running_loop().create_future()
        )
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> list[AnyTool]:
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
        return [McpTool(self, tool) for tool in told if wanted is None or tool.name in wanted]

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        import mcp
        from mcp_types import CONNECTION_CLOSED

        assert self._task is not None
        client, _ = self._ready.result()
        if self._stop.is_set():
            raise self._lost("was closed: its tools work inside `async with mcp_tools(...)` only")
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
        await self._words.whole()
        raise self._lost(f"ended while {name} ran; run it by hand to see why") from cause

    async def close(self) -> None:
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
