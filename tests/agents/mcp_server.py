"""A real MCP server of few tools: over stdio, or with a port over HTTP on loopback."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    TextContent,
    ToolAnnotations,
)

PNG = b"\x89PNG\r\n\x1a\n"

server = MCPServer("tests", log_level="CRITICAL")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(name="look.up")
def look_up(name: str) -> dict[str, Any]:
    """Look a person up."""
    return {"name": name, "age": 7}


@server.tool()
def picture() -> Image:
    """Draw."""
    return Image(data=PNG, format="png")


@server.tool()
def sound() -> list[ContentBlock]:
    """Play."""
    return [AudioContent(type="audio", data="AAAA", mime_type="audio/wav")]


@server.tool()
def refuse() -> CallToolResult:
    """Report an error of its own."""
    told = TextContent(type="text", text="no such file; try list_files")
    return CallToolResult(content=[told], is_error=True)


calls: list[str] = []


def fail_once(name: str) -> str:
    calls.append(name)
    if calls.count(name) == 1:
        raise ToolError("busy")
    return "ok"


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def read() -> str:
    """Fail the first time."""
    return fail_once("read")


@server.tool()
def write() -> str:
    """Fail the first time."""
    return fail_once("write")


@server.tool()
def secret() -> str:
    """Tell what the environment gave it."""
    return os.environ.get("TEST_TOKEN", "none")


@server.tool()
def headers(ctx: Context) -> str:
    """Tell what the request was sent with."""
    return dict(ctx.headers or {}).get("authorization", "none")


@server.tool()
def die() -> str:
    """End the server."""
    print(f"fatal: disk of {os.environ.get('TEST_TOKEN')} is gone", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool()
async def wait() -> str:
    """Wait for ever, and say when that is over."""
    try:
        await anyio.sleep_forever()
    finally:
        if path := os.environ.get("TEST_CANCELLED"):
            Path(path).touch()  # noqa: ASYNC240 - a moment
    return ""


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
