"""Chains of tiers: when a call goes down one, when it does not, and what its receipt says."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import EndpointSpec, LeaseRequest, Routing
from agentcloud.cluster.endpoints import check_fallbacks
from agentcloud.cluster.errors import ConfigError, NoEndpoint, Overloaded
from agentcloud.cluster.sandbox import Fault, FaultKind
from tests.cluster.scheduling import HAIKU as BIG
from tests.cluster.scheduling import Bed, failed, fleet, hosted, ok, replica
from tests.cluster.serving import HAIKU, PARAMS, serving

OPUS = "claude-opus-5"
NO_FALLBACK = Routing(fallback=False)


def large(slots: int = 50) -> EndpointSpec:
    return replace(hosted(slots), tier="large")


def bed(*specs: EndpointSpec, **more: Any) -> Bed:
    return Bed(*(specs or (replica(0), large())), config=fleet(**{"fallbacks": CHAIN, **more}))


CHAIN = {"small": ["large"]}
HOSTED = f"anthropic/{BIG}"


def test_what_the_tier_cannot_do_goes_down_the_chain() -> None:
    lease = bed().take("c0", input_tokens=30_000)
    assert (lease.endpoint.name, lease.fallback_from) == (HOSTED, "small")
    assert lease.reason.startswith("fallback from small (no endpoint of 'small' can serve")
    assert "context of 8192 tokens is too small" in lease.reason
    alone = bed()
    alone.ask("c0", input_tokens=30_000, routing=NO_FALLBACK)
    assert isinstance(alone.errors["c0"], NoEndpoint)


def test_a_tier_that_is_only_busy_is_waited_for() -> None:
    here = bed(replica(0, slots=1), large())
    first = here.take("c0")
    assert (first.fallback_from, first.reason[:4]) == (None, "only")
    assert here.ask("c1") is None
    assert here.tell(ok(first)) == ["c1"]
    assert here.leases["c1"].endpoint.name == "replica:m:0"


def test_a_tier_that_is_down_is_left_also_by_those_that_wait_and_come_back_to() -> None:
    here = bed(replica(0, slots=1), large(slots=1))
    here.take("c0")
    assert here.ask("c1") is None
    assert here.ask("stays", routing=NO_FALLBACK) is None
    here.core.mark_down("replica:m:0", "its process died")
    assert here.poll() == ["c1"]
    lease = here.leases["c1"]
    assert lease.endpoint.name == HOSTED
    assert "(replica:m:0 down (its process died))" in lease.reason
    assert here.ask("c2") is None, "the other tier is busy"
    here.core.register([replica(0, slots=1)])
    assert here.poll() == ["stays"], "the first that waits for it"
    assert here.tell(ok(here.leases["stays"])) == ["c2"]
    assert here.leases["c2"].fallback_from is None


def test_an_open_circuit_sends_calls_on_and_takes_one_of_them_as_its_probe() -> None:
    here = bed(replica(0, slots=4), large())
    for index in range(2):
        here.tell(failed(here.take(f"b{index}")))
    leases = [here.take(f"c{index}") for index in range(4)]
    assert here.ask("waits") is None
    assert here.tell(failed(leases[0])) == ["waits"], "the third in a row"
    assert here.leases["waits"].endpoint.name == HOSTED
    assert "cooling for 1 s (api_error, 3 in a row)" in here.leases["waits"].reason
    assert here.take("c5").endpoint.name == HOSTED
    here.clock.advance(1.1)
    # All come before one is decided: one is the probe, the others do not wait for its end.
    for index in range(5):
        here.core.submit(request(f"d{index}"))
    here.poll()
    names = [here.leases[f"d{index}"].endpoint.name for index in range(5)]
    assert sorted(names) == [HOSTED] * 4 + ["replica:m:0"]
    probe = here.leases[f"d{names.index('replica:m:0')}"]
    here.tell(ok(probe))
    assert here.take("e0").endpoint.name == "replica:m:0"


def request(call_id: str) -> Any:
    return LeaseRequest(call_id, "small", 100, 100)


def test_a_call_that_all_of_its_tier_failed_goes_on() -> None:
    here = bed(replica(0), replica(1), large())
    one = here.take("c0.2", attempt=2, avoid=frozenset({"replica:m:0"}))
    assert one.endpoint.name == "replica:m:1"
    both = here.take("c0.3", attempt=3, avoid=frozenset({"replica:m:0", "replica:m:1"}))
    assert both.endpoint.name == HOSTED
    assert "replica:m:0 failed this call, replica:m:1 failed this call" in both.reason
    never = here.take(
        "c1.3",
        attempt=3,
        avoid=frozenset({"replica:m:0", "replica:m:1"}),
        routing=NO_FALLBACK,
    )
    assert never.endpoint.tier == "small"


def test_chains_are_followed_to_their_end_and_their_refusal_names_them() -> None:
    chain = {"tiny": ["small"], "small": ["large"]}
    here = bed(replica(0), large(), fallbacks=chain)
    assert here.take("c0", "tiny").endpoint.name == "replica:m:0"
    assert here.take("c1", "tiny", input_tokens=30_000).endpoint.name == HOSTED
    here.ask("c2", "tiny", input_tokens=10**7)
    assert "nor can what it falls back to: small, large" in str(here.errors["c2"])


def test_a_fallback_that_is_too_dear_leaves_the_call_where_it_was() -> None:
    here = bed(replica(0, slots=1), large())
    here.core.open_budget(("job:a",), Decimal(0))
    here.core.mark_down("replica:m:0", "its process died")
    assert here.ask("c0", routing=Routing(budget=("job:a",))) is None
    assert here.errors == {}
    here.core.register([replica(0, slots=1)])
    assert here.poll() == ["c0"]
    assert here.leases["c0"].endpoint.name == "replica:m:0"


@pytest.mark.parametrize(
    ("fallbacks", "said"),
    [
        ({"small": ["small"]}, "small -> small goes round in a circle"),
        (
            {"small": ["medium"], "medium": ["large"], "large": ["small"]},
            "fallbacks: small -> medium -> large -> small goes round in a circle",
        ),
        ({"small": ["huge"]}, "fallbacks.small: 'huge' is no tier or model of this fleet (there"),
        ({"smal": ["large"]}, "fallbacks.smal: 'smal' is no tier or model"),
        ({"small": "large"}, "fallbacks.small: input should be a valid list"),
    ],
)
def test_a_wrong_chain_is_one_clear_line(fallbacks: dict[str, Any], said: str) -> None:
    data = {
        "accounts": {"main": {}},
        "hosted": {HAIKU: {"account": "main"}, OPUS: {"account": "main"}},
        "fallbacks": fallbacks,
    }
    with pytest.raises(ConfigError) as caught:
        check_fallbacks(parse_fleet(data))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


TWO: dict[str, Any] = {
    "hosted": {HAIKU: {"account": "main"}, OPUS: {"account": "main"}},
    "fallbacks": {"small": ["large"]},
}
SMALL = {**PARAMS, "model": "small"}


async def test_the_receipt_names_who_served_and_the_cost_is_that_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LiteLLM 25503, 13486: a fallback hid which model served, so its cost went to the wrong."""
    async with serving(monkeypatch, clock=FakeClock(), **TWO) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED, model=HAIKU))
        message = await served.with_time(served.inference.create(SMALL))
        receipt = message.agentcloud
        assert message.model == receipt.model == OPUS
        assert receipt.endpoint == f"main/{OPUS}"
        assert receipt.fallback_from == "small"
        assert f"fallback from small (main/{HAIKU} failed this call)" in receipt.reason
        # Opus: 5 and 25 USD a million tokens; Haiku: 1 and 5.
        expected = (5 * message.usage.input_tokens + 25 * message.usage.output_tokens) * Decimal(
            "1e-6"
        )
        assert receipt.cost_usd == expected
        assert served.scheduler.core.totals[f"main/{OPUS}"].cost_usd == expected
        assert served.scheduler.core.totals[f"main/{HAIKU}"].cost_usd == 0
        usual = await served.inference.create(SMALL)
        assert (usual.agentcloud.model, usual.agentcloud.fallback_from) == (HAIKU, None)


@pytest.mark.parametrize("after_deltas", [0, 2])
async def test_overload_inside_a_stream_falls_back_before_content_and_only_then(
    monkeypatch: pytest.MonkeyPatch, after_deltas: int
) -> None:
    """LiteLLM 6957: an overload inside a stream (after its 200) triggered no fallback."""
    async with serving(monkeypatch, clock=FakeClock(), **TWO) as served:
        fault = Fault(kind=FaultKind.STREAM_ERROR, after_deltas=after_deltas, model=HAIKU)
        served.sandbox.add_fault(fault)
        stream = served.inference.stream(SMALL)
        await served.with_time(stream.open())
        if after_deltas:
            with pytest.raises(Exception, match="broke after part of the answer"):
                _ = [event async for event in stream]
            assert [call.model for call in served.sandbox.calls] == [HAIKU]
            return
        events = [event.type async for event in stream]
        assert (events[0], events[-1]) == ("message_start", "message_stop")
        assert stream.receipt is not None
        assert (stream.receipt.model, stream.receipt.fallback_from) == (OPUS, "small")
        assert [call.model for call in served.sandbox.calls] == [HAIKU, OPUS]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_fallback_that_is_switched_off_never_happens(
    monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """LiteLLM 19077: a disabled fallback happened in mid-stream."""
    async with serving(monkeypatch, clock=FakeClock(), **TWO) as served:
        fault = Fault(kind=FaultKind.STREAM_ERROR, after_deltas=0, model=HAIKU)
        served.sandbox.add_fault(fault, count=9)
        if streamed:
            work: Any = served.inference.stream(SMALL, NO_FALLBACK).open()
        else:
            work = served.inference.create(SMALL, NO_FALLBACK)
        with pytest.raises(Overloaded):
            await served.with_time(work)
        assert [call.model for call in served.sandbox.calls] == [HAIKU] * 4
