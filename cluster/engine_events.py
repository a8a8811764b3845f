"""The engine's events about its KV cache, taken in when somebody asks.

The engine's process publishes them over ZeroMQ, numbered from 0; nothing wakes this process for
them. It binds a socket of its own, and this side connects before the engine is there: when it has
its first request, seconds later, it knows of the subscription. (The other way round, the engine
connecting to a port of ours, its first event is lost.)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import structlog
import zmq

from agentcloud.cluster.engine_blocks import BlockMap
from agentcloud.cluster.prefix import Change

log = structlog.get_logger()

#: Batches of events kept for whoever asks; an engine makes one a step, if anything changed.
_KEPT: Final = 100_000
#: Batches taken in at once: what is left waits for the next time.
_AT_ONCE: Final = 2_000
#: Followed by the id of the process.
_FOLDER: Final = "agentcloud-kv-"


class BlockEvents:
    """What the cache of one engine holds, by its events; says nothing once any was lost.

    Args:
        decode: a message of the engine's -> its events, as vLLM defines them.
    """

    def __init__(self, decode: Callable[[bytes], Any]) -> None:
        self.blocks = BlockMap()
        self._decode = decode
        self._numbers = 0
        self._broken = False
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, _KEPT)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        _sweep()
        # Nobody else's to read: the events tell the prompts.
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.address = f"ipc://{self._folder / 'events'}"
        self._socket.connect(self.address)

    def change(self, *, anew: bool) -> Change | None:
        """What is new since the last time; None: nothing is known for certain (any more)."""
        if not self._broken:
            try:
                self._drain()
            except (zmq.ZMQError, ValueError, AttributeError, TypeError) as error:
                self._give_up(f"{type(error).__name__}: {error}")
        return None if self._broken else self.blocks.change(anew=anew)

    def close(self) -> None:
        """Let go of the socket."""
        self._broken = True
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _drain(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                _, number, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if int.from_bytes(number, "big") != self._numbers:
                self._give_up("events were lost")
                return
            self._numbers += 1
            for event in self._decode(payload).events:
                self._take(event)

    def _take(self, event: Any) -> None:
        kind = type(event).__name__
        # Of a model with several kinds of attention the first group's: a hit needs it anyway.
        if getattr(event, "group_idx", None) not in (None, 0):
            return
        if kind == "BlockStored":
            self.blocks.stored(
                event.parent_block_hash, event.block_hashes, event.token_ids, event.block_size
            )
        elif kind == "BlockRemoved":
            self.blocks.removed(event.block_hashes)
        elif kind == "AllBlocksCleared":
            self.blocks.cleared()

    def _give_up(self, why: str) -> None:
        self._broken = True
        self.blocks = BlockMap()
        log.warning("the engine's cache is no longer known, only guessed", why=why)

    def __repr__(self) -> str:
        return f"BlockEvents({self.address}, {self.blocks}, broken={self._broken})"


def _sweep() -> None:
    """Remove the folders of engines that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        pid = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)
