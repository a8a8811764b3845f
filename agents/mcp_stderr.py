"""The last thing that a server said, for the error's line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from typing import TextIO

#: Characters kept of what a server says, and shown of its last line.
_KEPT = 4_000
_SHOWN = 300
#: Longest wait for the end of a pipe whose server has ended.
_WAIT_S = 1.0


class LastWords:
    """Keeps the end of a server's stderr; never shows a secret that the server was given.

    Args:
        secrets: what is blanked.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [secret for secret in secrets if secret]
        self._tail = ""
        self._stderr: TextIO | None = None
        self._ended = asyncio.Event()
        self._ended.set()

    async def open(self, stack: AsyncExitStack) -> TextIO:
        """A file for the server's stderr; reading it ends with `stack`.

        A pipe that is read, not a file: a server that talks for days would fill the disk.
        """
        readable, writable = os.pipe()
        self._stderr = os.fdopen(writable, "w")
        self._ended.clear()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Reader(self), os.fdopen(readable, "rb", buffering=0)
        )
        stack.callback(transport.close)
        stack.push_async_callback(self.whole)
        return self._stderr

    def close_our_end(self) -> None:
        """So that the pipe ends with the server."""
        if self._stderr is not None:
            self._stderr.close()

    async def whole(self) -> None:
        """Wait until the server has said all; a child of it may hold the pipe, so not for long."""
        self.close_our_end()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _WAIT_S)

    def end(self) -> None:
        """Nothing more comes."""
        self._ended.set()

    def say(self, text: str) -> None:
        """Add what the server said."""
        self._tail = (self._tail + text)[-_KEPT:]

    def last(self) -> str:
        """The last line that is not blank, without secrets."""
        lines = [line.strip() for line in self._tail.splitlines() if line.strip()]
        line = lines[-1] if lines else ""
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line[:_SHOWN]


class _Reader(asyncio.Protocol):
    def __init__(self, words: LastWords) -> None:
        self._words = words

    def data_received(self, data: bytes) -> None:
        self._words.say(data.decode(errors="replace"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._words.end()
