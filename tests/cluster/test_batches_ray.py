"""The batcher's real actor: killed in the middle, it goes on, and nothing is sent twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray

from agentcloud.cluster.batch_client import BatchClient
from agentcloud.cluster.batcher_actor import start_batcher
from agentcloud.cluster.batcher_port import BatcherPort
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.sandbox import BatchSettings, Sandbox, SandboxConfig
from tests.cluster.batching import FAST, WITH_BATCH, ask, asked
from tests.cluster.serving import CANARY, until

pytestmark = pytest.mark.ray

NAME = "batcher-test"


async def test_a_killed_batcher_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(CANARY)
    async with Sandbox(SandboxConfig(batches=BatchSettings(takes_s=1.0))) as sandbox:
        config = parse_fleet(
            {
                "accounts": {"main": {"base_url": sandbox.url, "api_key_file": str(key)}},
                "hosted": WITH_BATCH,
                "batch": FAST | {"store": str(tmp_path / "batches.db")},
            }
        )
        actor = start_batcher(config, name=NAME)
        client = BatchClient(BatcherPort(NAME), beat_s=0.1)
        try:
            work = asyncio.create_task(asked(client, *(ask(str(n)) for n in range(50))))
            await until(lambda: len(sandbox.state()["batches"]) == 1)
            first = client._epoch
            ray.kill(actor, no_restart=False)
            deliveries = await work
            assert all(each.message is not None for each in deliveries)
            assert client._epoch != first, "another process answered"
            (made,) = sandbox.state()["batches"]
            assert len(made["custom_ids"]) == 50
            # What was acknowledged is forgotten, on disk too.
            async with asyncio.timeout(10):
                while True:
                    shown = await actor.snapshot.remote()
                    if not shown["calls"]:
                        break
                    await asyncio.sleep(0.05)
            assert shown["batches"] == []
        finally:
            await client.close()
            await actor.stop.remote()
            ray.kill(actor)
