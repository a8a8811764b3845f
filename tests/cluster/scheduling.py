"""A small pool for tests of the scheduler's core, and a core on a clock that tests set."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.contracts import (
    EndpointKind,
    EndpointSpec,
    Lease,
    LeaseRequest,
    Outcome,
    Routing,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted, Refused
from agentcloud.cluster.scheduler import (
    SchedulerCore,
)

HAIKU = "claude-haiku-5-5"


def fleet(**more: Any) -> FleetConfig:
    """A fleet.yaml with one local and one hosted model."""
    return parse_fleet(
        {
            "models": {"m": {"path": "x"}},
            "accounts": {"main": {}},
            "hosted": {HAIKU: {"account": "main"}},
            **more,
        }
    )


def replica(index: int, slots: int = 2, **more: Any) -> EndpointSpec:
    """A replica of the local model."""
    return EndpointSpec(
        f"replica:m:{index}", EndpointKind.LOCAL, "m", "small", 8192, 4096, slots, **more
    )


def hosted(slots: int = 4) -> EndpointSpec:
    """The hosted model."""
    return EndpointSpec(
        f"anthropic/{HAIKU}",
        EndpointKind.HOSTED,
        HAIKU,
        "small",
        200_000,
        64_000,
        slots,
        "main",
        "haiku",
    )


def ok(lease: Lease, cost_usd: str = "0", output_tokens: int = 50) -> Settlement:
    """The settlement of an answered call."""
    return Settlement(
        lease.lease_id,
        Outcome.OK,
        TokenUsage(100, 0, 0, output_tokens),
        Decimal(cost_usd),
        Timings(0.0, 0.2, 1.0, 1.2),
    )


def failed(lease: Lease, kind: str = "api_error", **more: Any) -> Settlement:
    """The settlement of a send that cost nothing."""
    return Settlement(lease.lease_id, Outcome.FAILED, cost_usd=Decimal(0), error_kind=kind, **more)


class Bed:
    """A core with its clock; `ask` and `poll` keep what was decided."""

    def __init__(self, *specs: EndpointSpec, config: FleetConfig | None = None) -> None:
        self.clock = FakeClock(100.0)
        self.core = SchedulerCore(
            config or fleet(), load_catalog(), self.clock, random.Random(7), lambda: 1e9
        )
        self.core.register(specs)
        self.leases: dict[str, Lease] = {}
        self.errors: dict[str, Exception] = {}
        self.order: list[str] = []

    def ask(self, call_id: str, model: str = "small", **more: Any) -> Lease | None:
        """Submit and poll; the lease if it was granted at once."""
        routing = more.pop("routing", Routing())
        size = (more.pop("input_tokens", 100), more.pop("max_output_tokens", 100))
        self.core.submit(LeaseRequest(call_id, model, *size, routing=routing, **more))
        self.poll()
        return self.leases.get(call_id)

    def take(self, call_id: str, model: str = "small", **more: Any) -> Lease:
        """As `ask`, for a call that must be granted at once."""
        lease = self.ask(call_id, model, **more)
        assert lease is not None, f"{call_id} was not granted: {self.errors.get(call_id)}"
        return lease

    def tell(self, settlement: Settlement) -> list[str]:
        """Settle and poll; the calls decided by it."""
        self.core.settle(settlement)
        return self.poll()

    def wait(self, seconds: float) -> list[str]:
        """Move the clock and poll; the calls decided by it."""
        self.clock.advance(seconds)
        return self.poll()

    def poll(self) -> list[str]:
        """Take decisions in; each call is decided once an attempt."""
        calls = []
        for decision in self.core.poll():
            calls.append(decision.call_id)
            if isinstance(decision, Granted):
                self.leases[decision.call_id] = decision.lease
            elif isinstance(decision, Refused):
                self.errors[decision.call_id] = decision.error
        self.order += calls
        return calls
