"""Running a sandbox: inside this process, or as its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from agentcloud.cluster.clock import Clock
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sandbox.answers import Responder
from agentcloud.cluster.sandbox.app import SandboxApp
from agentcloud.cluster.sandbox.calls import CallRecord
from agentcloud.cluster.sandbox.core import SandboxCore
from agentcloud.cluster.sandbox.settings import Fault, SandboxConfig

#: Calls still running at the end get this long; hanging ones are then cancelled.
_SHUTDOWN_S = 0.2
_PARENT_POLL_S = 0.5


class Sandbox:
    """A sandbox in this process: `async with Sandbox() as sandbox: … sandbox.url`.

    Args:
        config: what it serves; None is the default.
        responder: where answers come from; None makes synthetic ones.
        clock: the time of limits, cache and latency; a fake one makes them instant in tests.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        config: SandboxConfig | None = None,
        *,
        responder: Responder | None = None,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.core = SandboxCore(config or SandboxConfig(), responder=responder, clock=clock)
        self._host = host
        self._port = port
        self._runner: web.ServerRunner | None = None
        self._app: SandboxApp | None = None
        self._url: str | None = None

    def __repr__(self) -> str:
        return f"<Sandbox {self._url or 'not started'} {self.core!r}>"

    @property
    def url(self) -> str:
        """Base URL for clients.

        Raises:
            RuntimeError: it does not run.
        """
        if self._url is None:
            raise RuntimeError("the sandbox does not run: enter it with `async with` first")
        return self._url

    @property
    def calls(self) -> list[CallRecord]:
        """The calls it got, oldest first."""
        return list(self.core.calls.calls)

    def state(self) -> dict[str, Any]:
        """What GET /sandbox/state answers."""
        state = self.core.state()
        return state | {"batches": self._app.batches.state()} if self._app else state

    def reset(self) -> None:
        """Full buckets, an empty cache, no queued fault, no remembered call or batch."""
        self.core.reset()
        if self._app is not None:
            self._app.batches.reset()

    def add_fault(self, fault: Fault, count: int = 1) -> None:
        """Strike the next `count` calls."""
        self.core.faults.add(fault, count)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the port is in use, or the address is not this machine's.
        """
        limit_bytes = max(self.core.config.max_body_bytes, self.core.config.batches.max_bytes)
        loop = asyncio.get_running_loop()

        def make_request(
            message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
        ) -> web.BaseRequest:
            # The server's own factory, but for the size of bodies.
            return web.BaseRequest(
                message, payload, protocol, writer, task, loop, client_max_size=limit_bytes
            )

        app = SandboxApp(self.core)
        server = web.Server(
            app.handle,
            request_factory=make_request,
            # A client that goes away ends its call, as it does at the real API.
            handler_cancellation=True,
            access_log=None,
        )
        runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"the sandbox cannot listen on {self._host}:{self._port} "
                f"({error.strerror or error}); choose another port, or 0 for a free one"
            ) from error
        self._runner, self._app = runner, app
        host, port = runner.addresses[0][:2]
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening and end every call; harmless when it does not run."""
        runner, self._runner, self._url = self._runner, None, None
        if self._app is not None:
            await self._app.stop()
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


async def serve(
    config: SandboxConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[str], None],
    responder: Responder | None = None,
    parent_pid: int | None = None,
) -> None:
    """Run a sandbox until SIGTERM, SIGINT, or the end of the process `parent_pid`.

    `on_ready` gets the URL once it listens.

    Raises:
        ConfigError: it cannot listen there.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stopped.set)
    watcher = None
    if parent_pid is not None:
        watcher = asyncio.create_task(_wait_for_end(parent_pid, stopped))
    try:
        async with Sandbox(config, responder=responder, host=host, port=port) as sandbox:
            on_ready(sandbox.url)
            await stopped.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        if watcher is not None:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


async def _wait_for_end(pid: int, ended: asyncio.Event) -> None:
    """Set `ended` when process `pid` is no more."""
    direct_parent = os.getppid() == pid
    # A parent that died and was not reaped still has its pid, but its children have a new parent.
    while (os.getppid() == pid) if direct_parent else _exists(pid):  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(_PARENT_POLL_S)
    ended.set()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
