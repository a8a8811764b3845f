"""A real engine behind the sandbox: a local model answers in a hosted model's place."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import subprocess
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from anthropic.types import Message

from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.endpoints import check_model_folder
from agentcloud.cluster.engine_fork import fork_server
from agentcloud.cluster.engine_settings import engine_settings, model_folder
from agentcloud.cluster.reaper import end_reaper, start_reaper
from agentcloud.cluster.sandbox.backed import BackedResponder
from agentcloud.cluster.sandbox.server import serve
from agentcloud.cluster.sandbox.settings import SandboxConfig

if TYPE_CHECKING:
    from agentcloud.cluster.engine import LocalEngine


class EngineBackend:
    """Answers requests of the Messages API with one engine of this process.

    `async with EngineBackend(path)`: the engine starts in the background, which takes tens of
    seconds; calls made before wait for it.

    Args:
        path: model folder, or `embedded:NAME`.

    Raises:
        ConfigError: there is no model there.
    """

    def __init__(self, path: str) -> None:
        check_model_folder(model_folder(path), "--model")
        model = LocalModel(path=path, kv_cache_gib=0.25, context_tokens=1024, max_concurrency=128)
        cores = sorted(os.sched_getaffinity(0))
        self._settings = engine_settings("sandbox", model, tensor_parallel=1, cores=cores)
        self._ids = itertools.count()
        self._reaper: subprocess.Popen[bytes] | None = None
        self._starting: asyncio.Task[LocalEngine] | None = None

    async def create(self, params: dict[str, Any]) -> Message:
        """Answer one request.

        Raises:
            BackendError: the engine refused it, died, or did not start.
        """
        reply = await (await self.ready()).create(params, f"sandbox-{next(self._ids)}")
        return Message.model_validate_json(reply.message)

    async def ready(self) -> LocalEngine:
        """Wait until the engine runs.

        Raises:
            ReplicaLost: it did not come up.
        """
        assert self._starting is not None
        return await asyncio.shield(self._starting)

    async def __aenter__(self) -> Self:
        # First: neither the engine's processes nor their fork server end with this one.
        self._reaper = start_reaper()
        self._starting = asyncio.create_task(self._start())
        return self

    async def _start(self) -> LocalEngine:
        # vllm reads its environment while it is imported, which takes seconds: by the fork server
        # and, so that this process listens meanwhile, by a thread.
        os.environ.update(self._settings.env)
        if self._settings.forks:
            fork_server()
        module = await asyncio.to_thread(importlib.import_module, "agentcloud.cluster.engine")
        engine: LocalEngine = await module.LocalEngine.start(self._settings)
        engine.own_process()
        return engine

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._starting is not None
        assert self._reaper is not None
        self._starting.cancel()
        (started,) = await asyncio.gather(self._starting, return_exceptions=True)
        if not isinstance(started, BaseException):
            await started.shutdown()
        await asyncio.to_thread(end_reaper, self._reaper)


async def serve_with_engine(
    config: SandboxConfig,
    path: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[str], None],
    on_engine: Callable[[], None],
    parent_pid: int | None = None,
) -> None:
    """As `serve`, with the model at `path` behind it.

    `on_ready` gets the URL once it listens, `on_engine` is called once the engine runs; calls in
    between wait for it.

    Raises:
        ConfigError: it cannot listen there.
        ReplicaLost: the engine did not come up.
    """
    async with EngineBackend(path) as backend:
        serving = asyncio.create_task(
            serve(
                config,
                host=host,
                port=port,
                on_ready=on_ready,
                responder=BackedResponder(backend),
                parent_pid=parent_pid,
            )
        )
        starting = asyncio.create_task(backend.ready())
        try:
            await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                on_engine()
            await serving
        finally:
            for task in (serving, starting):
                task.cancel()
            await asyncio.gather(serving, starting, return_exceptions=True)
