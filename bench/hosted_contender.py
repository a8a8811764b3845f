"""One way of calling a hosted model, as a process: `python hosted_contender.py NAME URL`.

Reads rounds from standard input, a line of JSON each (`{"inflight": 32, "calls": 640}`), and
answers each with its figures. Runs in the peers' environment too, so it imports nothing of ours
but in the contender that is ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

MODEL = "claude-haiku-4-5"
KEY = "sandbox-bench"
PARAMS: dict[str, Any] = {
    "max_tokens": 256,
    "messages": [
        {"role": "user", "content": "Sort this ticket: the app logs me out every hour. " * 4}
    ],
}
Send = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def bare(url: str) -> AsyncIterator[Send]:
    """The vendor's client as it comes."""
    from anthropic import AsyncAnthropic

    async with AsyncAnthropic(api_key=KEY, base_url=url) as client:
        yield lambda: client.messages.create(model=MODEL, **PARAMS)


@asynccontextmanager
async def litellm(url: str) -> AsyncIterator[Send]:
    """LiteLLM's Router over two deployments of the model."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network at import
    import litellm

    litellm.suppress_debug_info = True
    deployments = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"anthropic/{MODEL}",
                "api_base": url,
                "api_key": f"{KEY}-{n}",
            },
        }
        for n in (1, 2)
    ]
    router = litellm.Router(model_list=deployments)
    yield lambda: router.acompletion(model=MODEL, **PARAMS)


@asynccontextmanager
async def ours(url: str, wire: str = "stream") -> AsyncIterator[Send]:
    """Client -> inference -> the scheduler's actor in a real Ray -> hosted."""
    import ray

    from agentcloud.cluster.client import AsyncAgentCloud
    from agentcloud.cluster.config import parse_fleet
    from agentcloud.cluster.connect import connect
    from agentcloud.cluster.contracts import RAY_NAMESPACE
    from agentcloud.cluster.endpoints import hosted_specs
    from agentcloud.cluster.scheduler_actor import start_scheduler

    os.environ["AGENTCLOUD_BENCH_KEY"] = KEY
    account = {"base_url": url, "api_key_env": "AGENTCLOUD_BENCH_KEY", "wire": wire}
    config = parse_fleet({"accounts": {"main": account}, "hosted": {MODEL: {"account": "main"}}})
    ray.init(
        address="local",
        namespace=RAY_NAMESPACE,
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        await start_scheduler(config).register.remote(hosted_specs(config))
        inference = await connect()
        client = AsyncAgentCloud(inference)
        yield lambda: client.messages.create(model=MODEL, **PARAMS)
        await inference.close()
    finally:
        ray.shutdown()


@asynccontextmanager
async def ours_unary(url: str) -> AsyncIterator[Send]:
    """Ours over `wire: unary`: no time to first token."""
    async with ours(url, wire="unary") as send:
        yield send


@asynccontextmanager
async def ours_in_job(url: str) -> AsyncIterator[Send]:
    """Ours as an agent's `ctx.ask` makes it in a job: every answer is in the ledger first."""
    import tempfile
    from pathlib import Path

    from agentcloud.agents.agent import Context
    from agentcloud.cluster.client import AsyncAgentCloud
    from agentcloud.cluster.connect import connect
    from agentcloud.tasks.ledger_actor import start_ledger
    from agentcloud.tasks.ledger_client import LedgerClient, ask_ledger
    from agentcloud.tasks.recorder import TaskRecorder
    from agentcloud.tasks.spec import OnUnknown

    with tempfile.TemporaryDirectory() as folder:
        async with ours(url):
            start_ledger(f"sqlite:///{Path(folder) / 'store.db'}")
            spec = json.dumps({"agent": "bench"})
            epoch = await ask_ledger(lambda ledger: ledger.begin.remote("j", spec, {}))
            ledger = LedgerClient("j", epoch)
            inference = await connect()
            client = AsyncAgentCloud(inference)
            # One task that asks the same again and again: every answer is another step.
            recorder = TaskRecorder(ledger, "j", "t", OnUnknown.RESEND)
            context = Context(client, recorder=recorder)
            prompt = PARAMS["messages"][0]["content"]
            settings = {"max_tokens": PARAMS["max_tokens"]}
            yield lambda: context.ask(prompt, model=MODEL, **settings)
            await inference.close()


CONTENDERS = {
    "bare": bare,
    "litellm": litellm,
    "ours": ours,
    "ours_unary": ours_unary,
    "ours_in_job": ours_in_job,
}


async def measure(send: Send, inflight: int, calls: int) -> dict[str, float]:
    """Send `calls` calls, `inflight` at once.

    Returns:
        Requests a second, median latency (ms), and the process's CPU time a call (ms).
    """
    latencies_s: list[float] = []

    async def worker() -> None:
        for _ in range(calls // inflight):
            began_s = time.perf_counter()
            await send()
            latencies_s.append(time.perf_counter() - began_s)

    began_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(inflight)))
    elapsed_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    done = len(latencies_s)
    return {
        "rps": done / elapsed_s,
        "p50_ms": statistics.median(latencies_s) * 1e3,
        "cpu_ms": cpu_s / done * 1e3,
    }


async def main() -> None:
    """Serve rounds until standard input ends."""
    name, url = sys.argv[1:]
    loop = asyncio.get_running_loop()
    async with CONTENDERS[name](url) as send:
        print(json.dumps({"ready": name}), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await measure(send, **json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
