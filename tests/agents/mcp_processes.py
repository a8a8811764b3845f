"""The MCP server of `mcp_server.py` as a process: by stdio, or listening on loopback."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from agentcloud.agents import Stdio

SERVER = str(Path(__file__).with_name("mcp_server.py"))


def stdio(**settings: Any) -> Stdio:
    """The server, not yet started."""
    return Stdio(sys.executable, SERVER, **settings)


def started() -> list[psutil.Process]:
    """Servers by stdio that run as children of this process."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[-1:] == [SERVER]
    ]


class Running:
    """A server process that listens on a port of loopback."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/mcp"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; it listens when this returns."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, SERVER, str(self._port), stderr=asyncio.subprocess.DEVNULL
        )
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                assert self.process.returncode is None
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    async def kill(self) -> None:
        """End it, if it has not ended."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
