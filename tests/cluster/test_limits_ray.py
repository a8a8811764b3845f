"""Eight processes at ten times the limits, and a thousand calls on one budget: real everything.

Real Ray, the real scheduler's actor with its store, the real client over HTTP, and a sandbox in a
process of its own whose buckets say what was allowed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import ray
import requests

from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.connect import endpoint_opener
from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.errors import AgentCloudError, BudgetExceeded
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.sandbox import Latency, RateLimits, Sandbox, SandboxConfig
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.cluster.scheduler_actor import SchedulerActor
from agentcloud.cluster.scheduler_client import SchedulerClient
from tests.cluster.serving import CANARY, HAIKU, KEY_ENV, PARAMS, fleet

pytestmark = pytest.mark.ray

SONNET, OPUS = "claude-sonnet-5-5", "claude-opus-5-5"
BURST_S = 3.0
#: About ten calls a second each: by requests, by input tokens, by output tokens.
LIMITS = {
    HAIKU: RateLimits(requests_per_minute=600, burst_s=BURST_S),
    SONNET: RateLimits(input_tokens_per_minute=60_000, burst_s=BURST_S),
    OPUS: RateLimits(output_tokens_per_minute=19_200, burst_s=BURST_S),
}
TEXT = "Sort this ticket into one of seven piles. " * 9
#: From the start of the load: what was sent before the server had said anything is paid off.
SETTLED_S, MEASURED_S = 10.0, 10.0


class Worker:
    """A process that never stops asking."""

    async def begin(self, actor: Any, config: FleetConfig) -> None:
        """Everything that takes time before the first call."""
        self.client = SchedulerClient(actor)
        opener = endpoint_opener(config)
        self.inference = Inference(self.client, opener, config, on_close=self.client.close)
        await self.inference.count_tokens({**PARAMS, "model": HAIKU})

    async def drive(self, loops: int, until_s: float) -> tuple[int, dict[str, float]]:
        """Calls answered until a time, `loops` callers a model, and when each model's first was.

        Times are in seconds since 1970.
        """
        inference, answered = self.inference, 0
        first_s: dict[str, float] = {}

        async def ask(model: str) -> None:
            nonlocal answered
            params = {
                "model": model,
                "max_tokens": 1024,
                "messages": [{"role": "user", "content": TEXT}],
            }
            while time.time() < until_s:
                try:
                    await inference.create(params)
                    answered += 1
                    first_s.setdefault(model, time.time())
                except AgentCloudError:
                    await asyncio.sleep(0.2)  # The first wave may use up its retries.

        tasks = [asyncio.create_task(ask(model)) for model in LIMITS for _ in range(loops)]
        await asyncio.wait(tasks, timeout=max(0.0, until_s - time.time()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await inference.close()
        return answered, first_s


@pytest.fixture
def limited() -> Iterator[SandboxProcess]:
    """A sandbox with limits that are tight and refill quickly."""
    config = SandboxConfig(
        limits={SandboxConfig().models[model].family: each for model, each in LIMITS.items()},
        latency={"*": Latency(ttft_s=0.2, per_output_token_s=0.01)},
    )
    with SandboxProcess(config) as sandbox:
        yield sandbox


def test_eight_processes_at_ten_times_the_limits_are_never_refused_and_use_them(
    ray_cluster: None, limited: SandboxProcess, tmp_path: Path
) -> None:
    config = parse_fleet(
        {
            "accounts": {"main": {"base_url": limited.url, "api_key_env": KEY_ENV}},
            "hosted": {model: {"account": "main"} for model in LIMITS},
            "store": f"sqlite:///{tmp_path / 'store.db'}",
        }
    )
    actor = SchedulerActor.options(max_concurrency=1000, num_cpus=0).remote(config, fleet="f")
    ray.get(actor.register.remote(hosted_specs(config)))
    env = {"env_vars": {KEY_ENV: CANARY}}
    kind: Any = ray.remote(num_cpus=0, runtime_env=env)(Worker)
    workers = [kind.remote() for _ in range(8)]
    ray.get([worker.begin.remote(actor, config) for worker in workers], timeout=120)
    begin_s = time.time()
    end_s = begin_s + SETTLED_S + MEASURED_S
    # 64 callers a model, half a second a call: 128 calls a second wanted, ten allowed.
    driven = ray.get([w.drive.remote(8, end_s) for w in workers], timeout=120)
    assert min(answered for answered, _ in driven) > 0, "every process got its share"
    calls = requests.get(f"{limited.url}/sandbox/state", timeout=30).json()["calls"]
    calls = [call for call in calls if call["path"] == "/v1/messages"]
    for each in [*workers, actor]:
        ray.kill(each)

    for model, limits in LIMITS.items():
        mine = [call for call in calls if call["model"] == model]
        refused_s = [call["at_s"] - begin_s for call in mine if call["status"] == 429]
        from_s = begin_s + SETTLED_S
        window = [call for call in mine if from_s <= call["at_s"] < from_s + MEASURED_S]
        per_minute, used = {
            HAIKU: (limits.requests_per_minute, len(window)),
            SONNET: (
                limits.input_tokens_per_minute,
                sum(call["usage"].get("input_tokens", 0) for call in window),
            ),
            OPUS: (
                limits.output_tokens_per_minute,
                sum(call["usage"].get("output_tokens", 0) for call in window),
            ),
        }[model]
        assert per_minute is not None
        share = used / (per_minute / 60 * MEASURED_S)
        first_s = min(first_s[model] for _, first_s in driven if model in first_s) - begin_s
        print(
            f"{model}: {len(mine)} calls, used {share:.1%}, refused {len(refused_s)}"
            f" (first answer at {first_s:.2f} s, last refusal {max(refused_s, default=0.0):.2f} s)"
        )
        # The first wave is out before anything was said; its answers are the first correction, and
        # what was let go before the scheduler heard of them is on its way still.
        assert all(at_s <= first_s + 1.0 for at_s in refused_s), sorted(refused_s)
        assert share >= 0.95


async def test_a_thousand_calls_at_once_never_pass_a_cap_at_any_level(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, CANARY)
    caps = {
        ("tenant:t",): Decimal("0.11"),
        ("tenant:t", "job:a"): Decimal("0.09"),
        ("tenant:t", "job:b"): None,
        ("tenant:t", "job:a", "task:1"): Decimal("0.01"),
    }
    async with Sandbox(SandboxConfig(latency={"*": Latency(ttft_s=0.05)})) as sandbox:
        more: dict[str, Any] = {"fleet_budget_usd": "0.1"}
        config = fleet(sandbox.url, store=f"sqlite:///{tmp_path / 'store.db'}", **more)
        actor = SchedulerActor.options(max_concurrency=1000, num_cpus=0).remote(config, fleet="f")
        await actor.register.remote(hosted_specs(config))
        for path, cap in caps.items():
            await actor.open_budget.remote(path, cap)
        client = SchedulerClient(actor)
        inference = Inference(client, endpoint_opener(config), config, on_close=client.close)
        paths = [("tenant:t", "job:a", "task:1"), ("tenant:t", "job:a"), ("tenant:t", "job:b")]
        tasks = [
            asyncio.create_task(
                inference.create({**PARAMS, "max_tokens": 100}, Routing(budget=paths[index % 3]))
            )
            for index in range(1000)
        ]
        looks = most = 0

        async def look() -> None:
            nonlocal looks, most
            while True:
                states = await actor.budgets.remote()
                looks += 1
                for state in states:
                    used = state.spent_usd + state.reserved_usd + state.unknown_usd
                    assert state.limit_usd is None or used <= state.limit_usd, state
                most = max(most, sum(state.reserved_usd > 0 for state in states))
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(look())
        await asyncio.sleep(0.5)
        # Some callers go away in the middle: what they cost stays unknown.
        for task in tasks[::10]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await client.flush()
        watching.cancel()
        outcomes = Counter(type(result).__name__ for result in results)
        refused = Counter(each.scope for each in results if isinstance(each, BudgetExceeded))
        states = {state.scope: state for state in await actor.budgets.remote()}
        print(outcomes, refused, looks, states)
        answered = [each for each in results if not isinstance(each, BaseException)]
        spent = sum((each.agentcloud.cost_usd or Decimal(0) for each in answered), Decimal(0))
        root = states["fleet"]
        assert root.reserved_usd == 0
        assert root.spent_usd == spent
        assert root.limit_usd is not None
        assert root.spent_usd + root.unknown_usd <= root.limit_usd
        assert root.spent_usd + root.unknown_usd > root.limit_usd * Decimal("0.9"), "and all used"
        assert looks > 20
        assert most == 5, "money was held at every level"
        assert {"fleet", "task:1"} <= {scope.rsplit("/")[-1] for scope in refused}
        assert sum(outcomes.values()) == 1000
        assert set(outcomes) <= {"RoutedMessage", "Message", "BudgetExceeded", "CancelledError"}
        await inference.close()
        ray.kill(actor)
