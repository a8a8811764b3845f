"""Models without a replica that may have one: requests wait, spill, or are told why not."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from agentcloud.cluster.contracts import EndpointSpec, Routing
from agentcloud.cluster.demand import Backlog, Expected
from agentcloud.cluster.errors import NoEndpoint
from tests.cluster.scheduling import HAIKU, Bed, fleet, hosted, ok, replica

GUESS = Expected(replica(0), start_s=60.0)


def resting(*specs: EndpointSpec, start_s: float = 60.0) -> Bed:
    bed = Bed(*specs)
    bed.core.expect([Expected(replica(0), start_s)])
    return bed


def test_a_request_for_a_resting_model_waits_and_the_first_replica_takes_it() -> None:
    bed = resting()
    assert bed.ask("a") is None
    assert not bed.errors
    assert bed.core.demand().backlogs == (Backlog(("m",), 1, stranded=True),)
    bed.core.register([replica(3)])
    assert bed.poll() == ["a"]
    assert bed.leases["a"].endpoint.name == "replica:m:3"
    assert bed.core.demand().models["m"].inflight == 1


def test_a_replica_other_than_guessed_takes_the_place_of_the_guess() -> None:
    bed = resting()
    bed.ask("a")
    real = replica(0, slots=1)
    bed.core.register([real])
    assert bed.poll() == ["a"]
    bed.tell(ok(bed.leases["a"]))
    bed.core.unregister([real.name])
    assert bed.ask("b") is None
    assert not bed.errors, "the model rests again, as what it really is"
    bed.core.register([real])
    assert bed.poll() == ["b"]


def test_what_a_resting_model_cannot_do_is_refused_with_the_reason() -> None:
    bed = resting()
    bed.ask("a", max_output_tokens=5000)
    assert "m: generates at most 4096 tokens" in str(bed.errors["a"])
    bed.ask("b", "nothing")
    assert "ask for a tier (small) or a model (m)" in str(bed.errors["b"])


def test_a_model_that_cannot_start_refuses_those_that_wait_and_says_why() -> None:
    bed = resting()
    bed.ask("a")
    bed.core.expect([Expected(replica(0), 60.0, broken="holds no weights")])
    assert bed.poll() == ["a"]
    assert isinstance(bed.errors["a"], NoEndpoint)
    assert "m: no replica starts: holds no weights" in str(bed.errors["a"])
    bed.core.expect([Expected(replica(0), 60.0)])
    assert bed.ask("b") is None
    assert "b" not in bed.errors, "tried again"


def test_a_model_that_left_the_fleet_is_waited_for_no_longer() -> None:
    bed = resting()
    bed.ask("a")
    bed.core.expect([])
    bed.poll()
    assert "no endpoint is registered" in str(bed.errors["a"])


def test_a_hosted_model_is_taken_meanwhile_where_the_start_is_predicted_to_take_longer() -> None:
    assert resting(hosted(), start_s=600.0).take("a").endpoint.name == f"anthropic/{HAIKU}"
    # An hour waited is worth one USD: seconds are cheaper than the hosted call.
    assert resting(hosted(), start_s=0.01).ask("a", max_output_tokens=4000) is None


def test_calls_that_spill_are_counted_for_the_models_that_could_have_had_them() -> None:
    bed = resting(hosted(), start_s=600.0)
    bed.take("a")
    spilled = bed.core.demand().spilled[("m",)]
    assert spilled.calls == 1
    assert spilled.usd > 0


def test_own_calls_are_counted_with_what_they_would_have_cost_hosted() -> None:
    bed = Bed(replica(0, usd_per_hour=Decimal("0.01")), hosted())
    bed.tell(ok(bed.take("a")))
    bed.tell(ok(bed.take("b")))
    demand = bed.core.demand().models["m"]
    assert (demand.granted, demand.replaceable, demand.inflight) == (2, 2, 0)
    assert demand.hosted_usd > 0
    assert demand.known


def test_a_resting_model_is_no_outage_for_its_fallback_chain() -> None:
    large = EndpointSpec(
        "replica:big:0", replica(0).kind, "big", "large", 8192, 4096, 2
    )  # fmt: skip
    bed = Bed(large, config=fleet(fallbacks={"small": ["large"]}))
    bed.core.expect([GUESS])
    assert bed.ask("a") is None
    bed.core.register([replica(0)])
    assert bed.poll() == ["a"]
    assert bed.leases["a"].endpoint.name == "replica:m:0"


def test_a_deadline_too_short_for_the_start_is_no_refusal_or_nothing_would_ever_start() -> None:
    other = replace(replica(0), name="replica:n:0", model="n")
    both = [replica(0), other]
    bed = Bed(*both)
    for number in range(50):
        pin = Routing(endpoint=both[number % 2].name)
        bed.tell(ok(bed.take(f"warm{number}", routing=pin)))
    bed.core.expect([Expected(spec, 60.0) for spec in both])
    bed.core.unregister([spec.name for spec in both])
    assert bed.ask("a", routing=Routing(deadline_s=5.0)) is None
    assert not bed.errors
    assert sum(each.waiting for each in bed.core.demand().backlogs) == 1
