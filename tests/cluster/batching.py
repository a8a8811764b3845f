"""The batch lane for tests: processes -> batcher -> the real client -> a sandbox."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json

from agentcloud.cluster.batch_client import BatchClient, digest_of
from agentcloud.cluster.batch_store import BatchStore
from agentcloud.cluster.batch_wire import Ask, Delivery
from agentcloud.cluster.batcher import Batcher
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.sandbox import BatchSettings, Sandbox, SandboxConfig
from tests.cluster.serving import CANARY, HAIKU, KEY_ENV, PARAMS, fleet

#: Hours, in tests.
FAST: dict[str, Any] = {"linger_s": 0.05, "poll_s": 0.02, "max_poll_s": 0.05}
WITH_BATCH = {HAIKU: {"account": "main", "batch": True}}


def batch_fleet(url: str, store: Path, **batch: Any) -> FleetConfig:
    """A fleet whose hosted model takes batches."""
    settings = FAST | {"store": str(store)} | batch
    return fleet(url, hosted=WITH_BATCH, batch=settings)


@dataclass
class Lane:
    """A sandbox, and batchers that follow one another on one file."""

    sandbox: Sandbox
    config: FleetConfig
    batchers: list[Batcher] = field(default_factory=list)
    clients: list[BatchClient] = field(default_factory=list)

    async def batcher(self, session: str = "one", **keys: Any) -> Batcher:
        """The next batcher on the file."""
        keys = {"look_after_s": (0.05, 0.05)} | keys
        batcher = Batcher(self.config, BatchStore(self.config.batch.store), session=session, **keys)
        await batcher.start()
        self.batchers.append(batcher)
        return batcher

    def client(self, batcher: Any) -> BatchClient:
        """A process."""
        client = BatchClient(batcher, beat_s=0.02)
        self.clients.append(client)
        return client

    @property
    def made(self) -> list[dict[str, Any]]:
        """The batches that the sandbox got."""
        made: list[dict[str, Any]] = self.sandbox.state()["batches"]
        return made

    @property
    def requests_made(self) -> int:
        """Requests over all batches that the sandbox got."""
        return sum(len(batch["custom_ids"]) for batch in self.made)


@asynccontextmanager
async def lane(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    takes_s: float = 0.1,
    server: dict[str, Any] | None = None,
    **batch: Any,
) -> AsyncIterator[Lane]:
    """Everything but the callers; afterwards it is closed. `server` are the sandbox's settings."""
    monkeypatch.setenv(KEY_ENV, CANARY)
    settings = BatchSettings(takes_s=takes_s, **(server or {}))
    async with Sandbox(SandboxConfig(batches=settings)) as sandbox:
        here = Lane(sandbox, batch_fleet(sandbox.url, tmp_path / "batches.db", **batch))
        try:
            yield here
        finally:
            for client in here.clients:
                await client.close()
            for batcher in here.batchers:
                await batcher.stop()


def ask(text: str = "Sort this ticket.", **params: Any) -> Ask:
    """A call of its own id."""
    request = PARAMS | {"messages": [{"role": "user", "content": text}]} | params
    body = to_json(request)
    return Ask(uuid.uuid4().hex, "main", f"main/{HAIKU}:batch", digest_of(request), body)


async def asked(client: BatchClient, *asks: Ask) -> list[Delivery]:
    """What came of calls made at once."""
    async with asyncio.timeout(20):
        return list(await asyncio.gather(*(client.ask(each) for each in asks)))


async def crash(batcher: Batcher) -> None:
    """End a batcher as the death of its process does: nothing more is told or written."""
    tasks = [task for task in (batcher._main, *batcher._sender._tasks) if task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    batcher._store.close()
