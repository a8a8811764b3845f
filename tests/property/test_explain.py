"""Why a call went where it went, from a real core: nothing considered or ruled out is left out."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import (
    LeaseRequest,
    Outcome,
    Routing,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.tasks.cli_explain import explained
from agentcloud.tasks.render import stdout_console
from tests.cluster.scheduling import fleet, hosted, replica


@pytest.fixture
def core() -> SchedulerCore:
    core = SchedulerCore(fleet(), load_catalog(), FakeClock(0.0), random.Random(1))
    core.register([replica(0), replica(1), hosted()])
    return core


def ask(core: SchedulerCore, call: str, **more: Any) -> Granted:
    core.submit(LeaseRequest(call, "small", 100, 100, **more))
    [granted] = core.poll()
    assert isinstance(granted, Granted)
    return granted


def test_every_endpoint_is_considered_or_ruled_out(core: SchedulerCore) -> None:
    lease = ask(core, "call-1").lease
    told = core.explain("call-1")
    assert told is not None
    [send] = told["sends"]
    named = {each["endpoint"] for each in send["considered"]} | set(told["ruled_out"])
    # An equal of the chosen replica is neither: it was one of those that it was the least busy of.
    equals = {"replica:m:0", "replica:m:1"} - {lease.endpoint.name}
    assert named | equals == set(core.registry.endpoints)
    assert send["chosen"] == lease.endpoint.name
    assert send["why"] == lease.reason
    assert send["happened"] == "under way"
    json.dumps(told)


def test_what_really_happened_is_told_for_every_send(core: SchedulerCore) -> None:
    first = ask(core, "call-2").lease
    core.settle(
        Settlement(first.lease_id, Outcome.FAILED, cost_usd=Decimal(0), error_kind="api_error")
    )
    again = ask(core, "call-2.2", attempt=2, avoid=frozenset({first.endpoint.name})).lease
    core.settle(
        Settlement(
            again.lease_id,
            Outcome.OK,
            TokenUsage(60, 0, 40, 7),
            Decimal("0.001"),
            Timings(0.0, 0.25, 0.5, 0.75),
        )
    )
    told = core.explain("call-2")
    assert told is not None
    assert [send["happened"] for send in told["sends"]] == ["failed: api_error", "ok"]
    assert told["sends"][0]["chosen"] != told["sends"][1]["chosen"]
    last = told["sends"][1]
    assert (last["ttft_s"], last["cost_usd"], last["cache_read_tokens"]) == (0.25, "0.001", 40)
    console = stdout_console()
    with console.capture() as shown:
        console.print(explained(told))
    assert "failed: api_error" in shown.get()
    assert again.endpoint.name in shown.get()


def test_a_refusal_is_explained_and_a_stranger_is_not(core: SchedulerCore) -> None:
    core.submit(LeaseRequest("call-3", "small", 100, 100, routing=Routing(endpoint="nobody")))
    core.poll()
    told = core.explain("call-3")
    assert told is not None
    assert told["sends"][0]["chosen"] is None
    assert "nobody" in told["sends"][0]["why"]
    assert core.explain("call-4") is None
