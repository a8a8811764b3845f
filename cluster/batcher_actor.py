"""The batcher's Ray actor: one a cluster, detached, restarted by Ray."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import ray

from agentcloud.cluster.batch_store import BatchStore
from agentcloud.cluster.batch_wire import Tell, Told
from agentcloud.cluster.batcher import HOLDER_TIMEOUT_S, Batcher
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import BATCHER_NAME
from agentcloud.cluster.head_actor import start_on_head
from agentcloud.cluster.logs import configure_logs


class BatcherShell:
    """The actor's body."""

    def __init__(self, config: FleetConfig, session: str, holder_timeout_s: float) -> None:
        configure_logs(actor=BATCHER_NAME)
        self._config = config
        self._session = session
        self._starting = asyncio.Lock()
        self._holder_timeout_s = holder_timeout_s
        self._batcher: Batcher | None = None

    def __repr__(self) -> str:
        return BATCHER_NAME

    async def exchange(self, tell: Tell) -> Told:
        """As `BatchPort.exchange`."""
        return await (await self._started()).exchange(tell)

    async def leave(self, holder: str) -> None:
        """As `BatchPort.leave`."""
        await (await self._started()).leave(holder)

    async def snapshot(self) -> dict[str, Any]:
        """As `Batcher.snapshot`; also starts it."""
        return await (await self._started()).snapshot()

    async def stop(self) -> None:
        """As `Batcher.stop`."""
        if self._batcher is not None:
            await self._batcher.stop()

    async def _started(self) -> Batcher:
        async with self._starting:
            if self._batcher is None:
                batcher = Batcher(
                    self._config,
                    BatchStore(self._config.batch.store),
                    session=self._session,
                    holder_timeout_s=self._holder_timeout_s,
                )
                await batcher.start()
                self._batcher = batcher
        return self._batcher


_Actor = ray.remote(BatcherShell)


def start_batcher(
    config: FleetConfig,
    *,
    name: str = BATCHER_NAME,
    holder_timeout_s: float = HOLDER_TIMEOUT_S,
) -> Any:
    """Start the cluster's batcher, or find the running one."""
    # One session for all its lives: Ray restarts it with the same arguments.
    return start_on_head(_Actor, name, config, uuid.uuid4().hex, holder_timeout_s)
