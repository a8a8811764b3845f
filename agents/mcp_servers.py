"""Where MCP servers are: a program to start, or a URL. Their secrets are never shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import SecretStr

from agentcloud.agents.mcp_stderr import LastWords
from agentcloud.cluster.errors import AgentError

if TYPE_CHECKING:
    import mcp

#: Values that are never shown or logged, whichever of the two they are given as.
Secrets: TypeAlias = Mapping[str, str | SecretStr]


class McpServer(ABC):
    """What `Stdio` and `Http` have in common.

    Attributes:
        prefix: put before the names of its tools, to tell servers apart.
        only: names of the tools to offer, as the server has them; None: all.
        timeout_s: the longest one call may take, seconds.
        start_timeout_s: the longest that starting and listing tools may take, seconds.
        retries: how often a failed call is made again of tools that the server calls read-only
            or idempotent; others are never repeated.
    """

    label: str
    _secrets: dict[str, SecretStr]

    def __init__(
        self,
        secrets: Secrets,
        *,
        prefix: str = "",
        only: Collection[str] | None = None,
        timeout_s: float = 60.0,
        start_timeout_s: float = 30.0,
        retries: int = 0,
    ) -> None:
        self.prefix = prefix
        self.only = None if only is None else frozenset(only)
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.retries = retries
        self._secrets = {
            name: value if isinstance(value, SecretStr) else SecretStr(value)
            for name, value in secrets.items()
        }

    def __repr__(self) -> str:
        return f"<MCP server {self.label}>"

    def __str__(self) -> str:
        return f"MCP server {self.label}"

    def plain(self) -> dict[str, str]:
        """The secrets, for the wire only."""
        return {name: value.get_secret_value() for name, value in self._secrets.items()}

    @abstractmethod
    async def connect(self, stack: AsyncExitStack, words: LastWords) -> mcp.Client:
        """A client not yet entered; what it needs is closed with `stack`."""

    @abstractmethod
    def why_not(self, error: str) -> str:
        """What it means that the server ended with `error` before it was ready."""


class Stdio(McpServer):
    """A server that runs as a process of its own and speaks over stdin and stdout.

    Args:
        command: the program.
        *args: its arguments; they are shown in errors, so secrets belong in `env`.
        env: variables that it gets; besides, it inherits only PATH, HOME and the like.
        cwd: its working directory.
        **settings: see `McpServer`.
    """

    def __init__(
        self,
        command: str,
        *args: str,
        env: Secrets | None = None,
        cwd: str | Path | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(env or {}, **settings)
        self.command, self.args, self.cwd = command, args, cwd
        self.label = f"`{' '.join([command, *args])}`"

    async def connect(self, stack: AsyncExitStack, words: LastWords) -> mcp.Client:
        """A client whose server writes its stderr to `words`."""
        import mcp

        parameters = mcp.StdioServerParameters(
            command=self.command, args=list(self.args), env=self.plain(), cwd=self.cwd
        )
        stderr = await words.open(stack)
        return mcp.Client(mcp.stdio_client(parameters, errlog=stderr))

    def why_not(self, error: str) -> str:
        """What it means that the server ended with `error` before it was ready."""
        return f"ended before it was ready ({error}); run it by hand to see why"


class Http(McpServer):
    """A server that speaks streamable HTTP.

    Args:
        url: where it listens, `https://host/mcp`; no secrets in it: they belong in `headers`.
        headers: sent with every request, e.g. `{"Authorization": f"Bearer {token}"}`.
        **settings: see `McpServer`.

    Raises:
        AgentError: the URL is no http(s) URL, or has a user or a password in it.
    """

    def __init__(self, url: str, *, headers: Secrets | None = None, **settings: Any) -> None:
        super().__init__(headers or {}, **settings)
        parts = urlsplit(url)
        # A query may hold a key.
        self.label = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AgentError(f"{self} has no URL; write https://host/path")
        if "@" in parts.netloc:
            raise AgentError(f"{self} has credentials in its URL; put them into headers=")
        self.url = url

    async def connect(self, stack: AsyncExitStack, words: LastWords) -> mcp.Client:
        """A client that notes failing HTTP statuses in `words`."""
        import httpx2
        import mcp
        from mcp.client.streamable_http import streamable_http_client

        async def note(response: httpx2.Response) -> None:
            if response.status_code >= 400:
                words.say(f"HTTP {response.status_code} {response.reason_phrase}".strip())

        # A call's own time ends it; the connection must not end it sooner.
        timeout = httpx2.Timeout(30.0, read=max(300.0, 2 * self.timeout_s))
        http_client = await stack.enter_async_context(
            httpx2.AsyncClient(
                headers=self.plain(), timeout=timeout, event_hooks={"response": [note]}
            )
        )
        return mcp.Client(streamable_http_client(self.url, http_client=http_client))

    def why_not(self, error: str) -> str:
        """What it means that the server ended with `error` before it was ready."""
        return f"cannot be reached ({error}); is it running, are its URL and headers right?"
