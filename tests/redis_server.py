"""A real Redis of a test's own, on a Unix socket in a folder that goes with it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BIN: Final = shutil.which("redis-server")


@contextmanager
def redis_server() -> Iterator[str]:
    """A server for as long as the block lasts; its URL."""
    assert BIN is not None
    folder = Path(tempfile.mkdtemp(prefix="agentcloud-redis-"))
    socket = folder / "socket"
    command: list[str | Path] = [
        BIN,
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--dir",
        folder,
        "--save",
        "",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 20.0
        while not socket.exists():
            assert server.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline_s, "redis-server does not listen"
            time.sleep(0.02)
        yield f"unix://{socket}?db=0"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
