"""Our scheduler's core as a router of the simulator: the very same code as in the cluster."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import (
    EndpointKind,
    EndpointSpec,
    Lease,
    LeaseRequest,
    LoadReport,
    Outcome,
    Policy,
    Routing,
    Settlement,
    Timings,
)
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.errors import CallTimeout
from agentcloud.cluster.prefix import Change
from agentcloud.cluster.scheduler import SchedulerCore
from bench.sim_traces import BLOCK_TOKENS, Arrival
from bench.sim_world import HOSTED, Done, World, blocks_upto, usd

MODEL = "claude-haiku-5-5"


class Core:
    """Submits every arrival, sends what is granted, settles what is done."""

    def __init__(
        self,
        world: World,
        policy: Policy,
        usd_per_gpu_hour: Decimal,
        usd_per_hour_waited: float = 1.0,
        max_output_tokens: int = 2048,
        slots: int = 1024,
        deadline: bool = False,
    ) -> None:
        self.world = world
        self.max_output_tokens = max_output_tokens
        self.deadline = deadline
        models = {"m": {"path": "x", "usd_per_gpu_hour": str(usd_per_gpu_hour)}}
        hosted = world.hosted
        self.config = parse_fleet(
            {
                "models": models,
                "policy": policy.value,
                "usd_per_hour_waited": str(usd_per_hour_waited),
                **({} if hosted is None else _hosted_section(hosted)),
            }
        )
        self.core = SchedulerCore(self.config, load_catalog(), world, random.Random(0))
        self.leases: dict[int, Lease] = {}
        #: Time to first token and per token of each call, as predicted at its grant, seconds.
        self.predicted: dict[int, tuple[float | None, float | None]] = {}
        specs = [
            EndpointSpec(
                name,
                EndpointKind.LOCAL,
                "m",
                "small",
                1_000_000,
                128_000,
                slots,
                usd_per_hour=usd_per_gpu_hour,
                kv_tokens=world.replicas[name].speed.kv_tokens,
            )
            for name in world.replicas
        ]
        if hosted is not None:
            entry = load_catalog().entries[MODEL]
            specs.append(
                EndpointSpec(
                    HOSTED,
                    EndpointKind.HOSTED,
                    MODEL,
                    "small",
                    entry.context_tokens,
                    entry.max_output_tokens,
                    slots,
                    "main",
                    entry.family,
                )
            )
        self.core.register(specs)

    def arrive(self, key: int, arrival: Arrival) -> None:
        """Ask for a lease."""
        self.core.submit(self.request(key, arrival))

    def request(self, key: int, arrival: Arrival) -> LeaseRequest:
        """What the scheduler is told of an arrival."""
        return LeaseRequest(
            str(key),
            "small",
            arrival.prompt_tokens,
            self.max_output_tokens,
            routing=Routing(deadline_s=deadline_s(arrival) if self.deadline else None),
            cache_ttl=None,
            prefix=arrival.blocks[: arrival.prompt_tokens // BLOCK_TOKENS],
            prefix_tokens=blocks_upto(arrival),
            stream=True,
        )

    def done(self, done: Done) -> None:
        """Tell the truth."""
        lease = self.leases.pop(done.key)
        timings = Timings(
            lease.queued_s, done.first_s - done.sent_s, done.end_s - done.first_s, None
        )
        self.core.settle(
            Settlement(lease.lease_id, Outcome.OK, done.usage, usd(done.cost_usd), timings)
        )

    def refused(self, key: int, retry_after_s: float) -> None:
        """A 429: settle, and ask again."""
        lease = self.leases.pop(key)
        self.core.settle(
            Settlement(
                lease.lease_id,
                Outcome.FAILED,
                cost_usd=Decimal(0),
                error_kind="rate_limit_error",
                retry_after_s=retry_after_s,
            )
        )
        self.arrive(key, self.world.arrivals[key])

    def wake_s(self) -> float | None:
        """The core's own timers."""
        return self.core.next_wake_s()

    def wake(self) -> None:
        """End leases whose time has passed, take decisions, send."""
        self.core.expire()
        for decision in self.core.poll():
            if not isinstance(decision, Granted):
                if not isinstance(decision.error, CallTimeout):
                    raise decision.error
                # Its deadline cannot be met any more, and its caller is told so at once.
                self.world.give_up(int(decision.call_id))
                continue
            lease = decision.lease
            key = int(lease.call_id)
            self.leases[key] = lease
            self.predicted[key] = (lease.predicted_ttft_s, self._per_token_s(lease))
            self.world.send(key, lease.endpoint.name)

    def _per_token_s(self, lease: Lease) -> float | None:
        """Predicted with the call just granted among those that run."""
        state = self.core.endpoint(lease.endpoint.name)
        line = state.cls.predictor.per_token
        if not line.samples:
            return None
        return line.at(state.running(self.world.now_s)) * state.slowness

    def report(self, world: World) -> None:
        """Load reports, as the fleet sends them."""
        loads = {}
        told = {}
        for name, replica in world.replicas.items():
            world.look(replica)
            if replica.stored or replica.evicted:
                told[name] = Change(replica.stored, replica.evicted)
                replica.stored, replica.evicted = [], []
            loads[name] = LoadReport(
                running=len(replica.decoding) + len(replica.prefilling),
                waiting=len(replica.waiting),
                kv_used_fraction=replica.kv_used_fraction,
                prompt_tokens_queued=replica.prompt_tokens_queued,
            )
        self.core.report_load(loads)
        if told:
            self.core.report_prefixes(told)


def deadline_s(arrival: Arrival) -> float:
    """A deadline that a user could set: 2 s, 0.2 ms a prompt token, 30 ms an answer's token."""
    return 2.0 + 2e-4 * arrival.prompt_tokens + 0.03 * arrival.output_tokens


def _hosted_section(hosted: Any) -> dict[str, Any]:
    limits = {
        "requests_per_minute": hosted.requests_per_minute,
        "input_tokens_per_minute": hosted.input_tokens_per_minute,
        "output_tokens_per_minute": hosted.output_tokens_per_minute,
    }
    return {
        "accounts": {"main": {"limits": {"*": limits}}},
        "hosted": {MODEL: {"account": "main"}},
    }
