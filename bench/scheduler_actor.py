"""Leases a second of the scheduler's real actor over Ray, by number of client processes.

Each process keeps a number of callers busy that acquire a lease and settle it at once: nothing but
the scheduler is measured. Local: replicas that are never called, so no lease waits for the disk.
Paid: a hosted model that is never called, every lease in the store before it is granted. One at a
time: what a call waits for its lease, with leases in advance and, at a pace that is not steady,
without.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import ray

from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import (
    EndpointKind,
    EndpointSpec,
    LeaseRequest,
    Outcome,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.journal import is_paid
from agentcloud.cluster.scheduler_actor import SchedulerActor
from agentcloud.cluster.scheduler_client import SchedulerClient
from bench import report

PROCESSES: Final = (1, 2, 4)
CALLERS: Final = 64
SECONDS: Final = 5.0
BOUNDS: Final = {"local_leases_per_s": (">=", 2_000.0), "steady_wait_ms": ("<=", 0.2)}
_HOSTED: Final = "claude-haiku-5-5"


class Client:
    """One process that takes leases and gives them back."""

    async def saturate(self, actor: Any, model: str, callers: int, seconds: float) -> int:
        """Leases taken and settled in a time."""
        client = SchedulerClient(actor)
        end_s = time.monotonic() + seconds
        done = 0

        async def calls(number: int) -> None:
            nonlocal done
            count = 0
            while time.monotonic() < end_s:
                count += 1
                lease = await client.acquire(
                    LeaseRequest(f"{os.getpid()}-{number}-{count}", model, 500, 256)
                )
                client.settle(settled(lease))
                done += 1

        await asyncio.gather(*(calls(number) for number in range(callers)))
        await client.close()
        return done

    async def waits_ms(self, actor: Any, model: str, calls: int, gap_s: float) -> list[float]:
        """What each of so many calls, one at a time, waited for its lease."""
        client = SchedulerClient(actor)
        waits = []
        for count in range(calls):
            begin_s = time.perf_counter()
            request = LeaseRequest(f"{os.getpid()}-{model}-{gap_s}-{count}", model, 500, 256)
            lease = await client.acquire(request)
            waits.append((time.perf_counter() - begin_s) * 1000.0)
            await asyncio.sleep(gap_s)
            client.settle(settled(lease))
        await client.close()
        return waits[20:]


def settled(lease: Any) -> Settlement:
    """A call that was answered."""
    cost_usd = Decimal("0.0001") if is_paid(lease) else Decimal(0)
    usage = TokenUsage(500, 0, 0, 100)
    return Settlement(lease.lease_id, Outcome.OK, usage, cost_usd, Timings(0.0, 0.1, 1.0, 1.1))


def specs() -> list[EndpointSpec]:
    """Sixteen replicas and a hosted model, with room for every caller."""
    local = [
        EndpointSpec(f"replica:m:{index}", EndpointKind.LOCAL, "m", "small", 32_768, 8_192, 64)
        for index in range(16)
    ]
    hosted = EndpointSpec(
        *(f"main/{_HOSTED}", EndpointKind.HOSTED, _HOSTED, "large", 200_000, 64_000, 1_000),
        *("main", "haiku"),
    )
    return [*local, hosted]


def start(folder: str) -> Any:
    """A scheduler with a store."""
    config = parse_fleet(
        {
            "models": {"m": {"path": "x"}},
            "accounts": {"main": {}},
            "hosted": {_HOSTED: {"account": "main"}},
            "store": f"sqlite:///{Path(folder) / 'store.db'}",
        }
    )
    actor = SchedulerActor.options(max_concurrency=10_000, num_cpus=0).remote(config, fleet="f")
    ray.get(actor.register.remote(specs()))
    return actor


def main() -> int:
    """Measure, print, write; 1 when a bound is missed."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    kind: Any = ray.remote(num_cpus=0)(Client)
    figures: dict[str, Any] = {}
    rows = []
    with TemporaryDirectory() as folder:
        actor = start(folder)
        clients = [kind.remote() for _ in range(max(PROCESSES))]
        ray.get([client.__ray_ready__.remote() for client in clients])
        for what, model in (("local", "m"), ("paid", _HOSTED)):
            for count in PROCESSES:
                begin_s = time.monotonic()
                busy_s = ray.get(actor.__ray_call__.remote(_cpu_s))
                done = sum(
                    ray.get(
                        [
                            client.saturate.remote(actor, model, CALLERS, SECONDS)
                            for client in clients[:count]
                        ]
                    )
                )
                took_s = time.monotonic() - begin_s
                busy_s = ray.get(actor.__ray_call__.remote(_cpu_s)) - busy_s
                figures[f"{what}_{count}"] = {
                    "leases_per_s": done / took_s,
                    "actor_us_per_lease": busy_s / done * 1e6,
                    "actor_cpu_share": busy_s / took_s,
                }
                rows.append(
                    (
                        f"{what}, {count} processes",
                        done / took_s,
                        busy_s / done * 1e6,
                        f"{busy_s / took_s:.0%}",
                    )
                )
        for what, model, gap_s, calls in (
            ("steady_local", "m", 0.01, 300),
            ("unsteady_local", "m", 0.6, 40),
            ("paid", _HOSTED, 0.01, 300),
        ):
            waits = sorted(ray.get(clients[0].waits_ms.remote(actor, model, calls, gap_s)))
            figures[f"wait_{what}_ms"] = {
                "p50": waits[len(waits) // 2],
                "p95": waits[int(len(waits) * 0.95)],
            }
            shown = f"p50 {waits[len(waits) // 2]:.2f} ms, p95 {waits[int(len(waits) * 0.95)]:.2f}"
            rows.append((f"wait for a lease, {what}", shown, "", ""))
    report.table(
        f"scheduler's actor, {CALLERS} callers a process, {os.cpu_count()} cores",
        ("", "leases/s", "actor us/lease", "actor CPU"),
        rows,
    )
    ratios = {
        "local_leases_per_s": max(figures[f"local_{n}"]["leases_per_s"] for n in PROCESSES),
        "steady_wait_ms": figures["wait_steady_local_ms"]["p50"],
    }
    kept = report.ratios_table(ratios, BOUNDS)
    print(report.write("scheduler_actor", figures, ratios, BOUNDS))
    ray.shutdown()
    return 0 if kept else 1


def _cpu_s(_actor: Any) -> float:
    return time.process_time()


if __name__ == "__main__":
    sys.exit(main())
