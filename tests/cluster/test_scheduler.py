"""The scheduler's core: who is served where, in what order, and what happens when things fail."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from agentcloud.cluster.contracts import (
    LeaseRequest,
    Outcome,
    Policy,
    Routing,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted, Refused
from agentcloud.cluster.errors import BudgetExceeded, NoEndpoint
from agentcloud.cluster.former import Held
from agentcloud.cluster.parking import Parking
from agentcloud.cluster.scheduler_wire import Exchange, Reply, packed, unpacked
from tests.cluster.scheduling import HAIKU, Bed, failed, fleet, hosted, ok, replica


def test_the_least_busy_of_equals_is_taken_and_says_why() -> None:
    bed = Bed(replica(0), replica(1))
    names = [bed.take(f"c{index}").endpoint.name for index in range(4)]
    assert sorted(names[:2]) == sorted(names[2:]) == ["replica:m:0", "replica:m:1"]
    reason = bed.leases["c3"].reason
    assert "least loaded of 2 able: predicted" in reason
    assert "least busy of 2 equals" in reason
    assert repr(bed.core) == "<SchedulerCore endpoints=2 waiting=0 inflight=4>"
    assert repr(bed.core.endpoint("replica:m:0")) == "<Endpoint replica:m:0 up 2/2>"


def test_waiting_is_first_come_first_served_within_a_priority() -> None:
    bed = Bed(replica(0, slots=1))
    first = bed.take("c0")
    for call_id, priority in (("c1", 0), ("c2", 0), ("late", 1), ("soon", -1)):
        assert bed.ask(call_id, routing=Routing(priority=priority)) is None
    for _ in range(4):
        (decided,) = bed.tell(ok(first))
        first = bed.leases[decided]
    assert bed.order == ["c0", "soon", "c1", "c2", "late"]
    assert bed.leases["c2"].queued_s == 0.0


def test_a_request_that_waits_holds_up_nobody_whom_another_endpoint_serves() -> None:
    bed = Bed(replica(0, slots=1), hosted())
    bed.ask("c0", "m")
    assert bed.ask("c1", "m") is None
    assert bed.ask("c2", HAIKU) is not None


def test_a_busy_pool_spills_to_the_hosted_model_by_prediction_alone() -> None:
    bed = Bed(replica(0, slots=1), hosted(slots=50))
    names = [lease.endpoint.name for index in range(6) if (lease := bed.ask(f"c{index}"))]
    assert names[0] == "replica:m:0"
    assert names[1:] == [f"anthropic/{HAIKU}"] * 5
    cheap = Bed(replica(0, slots=1), hosted(slots=50))
    cheap.ask("c0", routing=Routing(policy=Policy.COST))
    assert cheap.ask("c1", routing=Routing(policy=Policy.COST)) is None, "waiting is cheaper"


def test_a_deadline_buys_what_waiting_would_miss() -> None:
    bed = Bed(replica(0, slots=1), hosted(slots=50), config=fleet(policy="cost"))
    bed.ask("c0")
    assert bed.ask("c1") is None
    lease = bed.take("c2", routing=Routing(deadline_s=3.0))
    assert lease.endpoint.name == f"anthropic/{HAIKU}"
    assert "cheapest to meet 3 s" in lease.reason


def test_what_nothing_can_serve_is_refused_with_the_reason_of_each() -> None:
    bed = Bed(replica(0), hosted())
    bed.ask("c0", "gpt-9")
    assert "no endpoint serves 'gpt-9'" in str(bed.errors["c0"])
    bed.ask("c1", input_tokens=300_000)
    error = bed.errors["c1"]
    assert isinstance(error, NoEndpoint)
    assert set(error.why) == {"replica:m:0", f"anthropic/{HAIKU}"}
    assert "context of 8192 tokens is too small" in error.why["replica:m:0"]
    assert bed.take("c2", input_tokens=30_000).endpoint.name == f"anthropic/{HAIKU}"


def test_three_failures_cool_an_endpoint_and_one_probe_brings_it_back() -> None:
    bed = Bed(replica(0, slots=8))
    leases = [bed.take(f"c{index}") for index in range(4)]
    for lease in leases[:3]:
        bed.tell(failed(lease))
    assert repr(bed.core.endpoint("replica:m:0").circuit) == (
        "<Circuit cooling failures=3 until=101.000>"
    )
    assert bed.ask("d0") is None
    assert bed.ask("d1") is None
    bed.tell(failed(leases[3]))  # Granted before: it lengthens nothing.
    assert bed.wait(0.9) == []
    assert bed.wait(0.2) == ["d0"], "one probe at a time"
    assert bed.tell(failed(bed.leases["d0"])) == []
    assert bed.wait(1.9) == []
    assert bed.wait(0.2) == ["d1"], "cooled twice as long"
    bed.tell(ok(bed.leases["d1"]))
    assert bed.ask("d2") is not None
    assert bed.ask("d3") is not None


def test_avoiding_is_a_wish() -> None:
    bed = Bed(replica(0), replica(1))
    avoid = frozenset({"replica:m:0"})
    for index in range(2):
        assert bed.take(f"c{index}", avoid=avoid).endpoint.name == "replica:m:1"
    assert bed.ask("c2", avoid=avoid) is None, "the other is up, only busy"
    bed.core.mark_down("replica:m:1", "its process died")
    bed.wait(0.3)
    assert bed.leases["c2"].endpoint.name == "replica:m:0", "nothing else is answering"


def test_a_dearer_endpoint_is_taken_rather_than_waiting_for_one_that_failed_the_call() -> None:
    dearer = replace(hosted(), name="anthropic/claude-haiku-4-5", model="claude-haiku-4-5")
    bed = Bed(hosted(), dearer)
    cheap = bed.take("c0").endpoint.name
    assert cheap == f"anthropic/{HAIKU}"
    again = bed.take("c0.2", attempt=2, avoid=frozenset({cheap}))
    assert again.endpoint.name == dearer.name


def test_requests_wait_for_a_replica_that_is_down_and_go_when_it_is_back() -> None:
    bed = Bed(replica(0))
    bed.core.mark_down("replica:m:0", "its process died")
    assert bed.ask("c0") is None
    assert bed.errors == {}
    bed.core.register([replica(0)])
    assert bed.poll() == ["c0"]


def test_down_for_too_long_is_given_up() -> None:
    bed = Bed(replica(0))
    bed.core.mark_down("replica:m:0", "its process died")
    bed.ask("c0")
    assert bed.wait(601.0) == ["c0"]
    assert "down for 600 s: its process died" in str(bed.errors["c0"])


def test_an_unusable_endpoint_is_out_until_it_is_registered_again() -> None:
    bed = Bed(hosted(slots=1))
    lease = bed.take("c0")
    bed.ask("c1")
    bed.tell(failed(lease, "authentication_error", unusable=True))
    assert "unusable (authentication_error)" in str(bed.errors["c1"])
    bed.core.register([hosted(slots=1)])
    assert bed.ask("c2") is not None


def test_retry_after_holds_the_account_back_in_full_and_shrinks_concurrency() -> None:
    bed = Bed(hosted(slots=10))
    lease, other = bed.take("c0"), bed.take("c1")
    bed.tell(failed(lease, "rate_limit_error", retry_after_s=90.0))
    bed.tell(failed(other, "rate_limit_error", retry_after_s=5.0))
    assert bed.core.endpoint(f"anthropic/{HAIKU}").concurrency.limit == 7
    assert bed.ask("c2") is None
    assert bed.wait(89.9) == []
    assert bed.wait(0.2) == ["c2"]


def test_requests_a_minute_hold_over_everything() -> None:
    limits = {"main": {"limits": {"*": {"requests_per_minute": 2}}}}
    bed = Bed(hosted(slots=100), config=fleet(accounts=limits))
    assert [bool(bed.ask(f"c{index}")) for index in range(4)] == [True, True, False, False]
    assert bed.wait(29.9) == []
    assert bed.wait(0.2) == ["c2"]
    assert bed.wait(30.1) == ["c3"]


def test_an_expired_lease_frees_its_slot_and_keeps_its_money_as_unknown() -> None:
    bed = Bed(hosted(slots=1), config=fleet(fleet_budget_usd=1))
    lease = bed.take("c0", routing=Routing(timeout_s=10.0))
    assert lease.expires_in_s == 40.0
    assert bed.ask("c1") is None
    assert bed.core.next_wake_s() == 140.0
    bed.clock.advance(40.0)
    (expired,) = bed.core.expire()
    assert (expired.call_id, expired.endpoint) == ("c0", f"anthropic/{HAIKU}")
    assert bed.poll() == ["c1"]
    assert bed.core.budgets()[0].unknown_usd == lease.reserved_usd > 0
    bed.tell(ok(lease, "0.00001"))
    assert bed.core.budgets()[0].unknown_usd == 0
    assert bed.core.budgets()[0].spent_usd == Decimal("0.00001")


def test_a_budget_of_zero_refuses_paid_calls_at_once_and_passes_free_ones() -> None:
    bed = Bed(replica(0, slots=1), hosted())
    bed.core.open_budget(("job:a",), Decimal(0))
    routing = Routing(budget=("job:a", "task:1"))
    bed.ask("paid", HAIKU, routing=routing)
    error = bed.errors["paid"]
    assert isinstance(error, BudgetExceeded)
    assert error.scope == "job:a"
    free = bed.take("free", routing=routing)
    assert free.endpoint.name == "replica:m:0"
    assert bed.ask("waits", routing=routing) is None, "for the free one, though another is idle"
    assert bed.tell(ok(free)) == ["waits"]


def test_money_in_flight_is_waited_for_and_then_refused_for_good() -> None:
    bed = Bed(hosted(slots=50))
    worst = bed.take("probe").reserved_usd
    bed.core.open_budget(("job:a",), worst * 2)
    routing = Routing(budget=("job:a",))
    first, second = bed.take("c0", routing=routing), bed.take("c1", routing=routing)
    assert bed.ask("c2", routing=routing) is None
    assert bed.ask("other") is not None, "no other budget is held up"
    assert bed.tell(ok(first, "0")) == ["c2"], "its worst case came back"
    assert bed.ask("c3", routing=routing) is None
    assert bed.tell(ok(second, str(worst))) == []
    assert bed.tell(ok(bed.leases["c2"], str(worst))) == ["c3"]
    assert isinstance(bed.errors["c3"], BudgetExceeded)
    assert repr(Parking()) == "<Parking waiting=0 budgets=0>"


def test_money_that_the_first_in_line_cannot_take_goes_to_the_next() -> None:
    bed = Bed(hosted(slots=50))
    worst = bed.take("probe").reserved_usd
    task = ("job:a", "task:1")
    bed.core.open_budget(("job:a",), worst * Decimal("1.5"))
    bed.core.open_budget(task, worst * Decimal("1.2"))
    lease = bed.take("c0", routing=Routing(budget=task))
    assert bed.ask("c1", routing=Routing(budget=task)) is None
    assert bed.ask("c2", routing=Routing(budget=("job:a",))) is None
    # The job has room for one more; the task of the first who waits has none, and never will.
    assert bed.tell(ok(lease, str(worst * Decimal("0.4")))) == ["c1", "c2"]
    assert isinstance(bed.errors["c1"], BudgetExceeded)
    assert bed.leases["c2"]


def test_an_attempt_told_twice_is_one_lease() -> None:
    bed = Bed(replica(0))
    lease = bed.take("c0")
    assert bed.take("c0") is lease
    assert bed.core.inflight == 1
    bed.tell(ok(lease))
    bed.tell(ok(lease))
    assert bed.core.snapshot()["stale_settlements"] == 1
    assert bed.ask("c0", attempt=2) is not lease


def test_a_dead_process_leaves_nothing_behind() -> None:
    bed = Bed(replica(0, slots=1))
    bed.core.submit(LeaseRequest("c0", "small", 1, 1, holder="dead"))
    bed.core.submit(LeaseRequest("c1", "small", 1, 1, holder="dead"))
    bed.core.submit(LeaseRequest("c2", "small", 1, 1, holder="alive"))
    bed.poll()
    assert [each.call_id for each in bed.core.drop_holder("dead")] == ["c0"]
    assert bed.poll() == ["c2"]
    assert bed.core.waiting == 0


def test_a_cancelled_request_is_never_decided() -> None:
    bed = Bed(replica(0, slots=1))
    lease = bed.take("c0")
    bed.ask("c1")
    bed.ask("c2")
    assert bed.core.cancel("c1")
    assert not bed.core.cancel("c0")
    assert bed.tell(ok(lease)) == ["c2"]


def test_predictions_come_from_settled_calls_and_are_unknown_before() -> None:
    bed = Bed(replica(0, slots=50))
    lease = bed.take("c0")
    assert lease.predicted_total_s is None
    assert lease.predicted_ttft_s is None
    for index in range(20):
        bed.tell(ok(lease))
        lease = bed.take(f"d{index}")
    assert lease.predicted_ttft_s is not None
    assert lease.predicted_total_s is not None
    assert abs(lease.predicted_ttft_s - 0.2) < 0.01
    assert abs(lease.predicted_total_s - 1.2) < 0.05


def test_the_snapshot_is_json_and_counts_what_happened() -> None:
    bed = Bed(hosted(), replica(0))
    bed.tell(ok(bed.take("c0", HAIKU), "0.5"))
    lost = bed.take("c1", HAIKU)
    bed.tell(Settlement(lost.lease_id, Outcome.UNKNOWN, error_kind="timeout_error"))
    shown = json.loads(json.dumps(bed.core.snapshot()))
    totals = shown["endpoints"][f"anthropic/{HAIKU}"]["totals"]
    assert (totals["calls"], totals["cost_usd"], totals["unknown_costs"]) == (2, "0.5", 1)
    assert (totals["ttft_p50_s"], totals["errors"]) == (0.2, {"timeout_error": 1})
    assert shown["budgets"][0]["unknown_usd"] == str(lost.reserved_usd)


def test_what_travels_between_processes_arrives_as_it_was() -> None:
    bed = Bed(replica(0))
    lease = bed.take("c0")
    request = LeaseRequest("c1", "m", 10, 10)
    told = Exchange("holder", 1, [request], [ok(lease)], ["c2"], [], [Held(request, lease, 1.0)])
    assert unpacked(packed(told), Exchange) == told
    reply = Reply([Granted(lease, "holder"), Refused("c1", "holder", NoEndpoint("none"))], "e", 3)
    granted, refused = unpacked(packed(reply), Reply).decisions
    assert isinstance(granted, Granted)
    assert granted.lease.reason == lease.reason
    assert granted == Granted(lease, "holder")
    assert isinstance(refused, Refused)
    assert str(refused.error) == "none"


def test_prompts_of_two_price_tiers_are_not_taken_for_one() -> None:
    bed = Bed(hosted(64))
    costs = {}
    # The middle ones are of one power of two; the catalogue's tier ends at 100,000.
    for tokens in (120_000, 70_000, 100_000, 100_001):
        (seen,) = bed.take(f"c{tokens}", input_tokens=tokens).considered
        costs[tokens] = seen.cost_usd
    assert costs[120_000] == pytest.approx(costs[70_000] * 5 * 12 / 7, rel=0.02)
    assert costs[100_001] == pytest.approx(costs[100_000] * 5, rel=0.02)


def test_a_stream_goes_where_prompts_have_been_read_though_more_calls_run_there() -> None:
    specs = [replace(replica(index, slots=8), context_tokens=100_000) for index in range(30)]
    bed = Bed(*specs)
    for call in range(60):  # Ten thousand prompt tokens are read in a second.
        tokens = 100 * (1 + call % 7)
        lease = bed.take(f"taught{call}", input_tokens=tokens, stream=True)
        bed.wait(0.2)
        timings = Timings(0.0, 0.01 + tokens * 1e-4, 0.1, 0.2)
        bed.tell(replace(ok(lease), usage=TokenUsage(tokens, 0, 0, 20), timings=timings))
    free, reading = specs[:20], specs[20:]
    for spec in (*free, *free, *reading):
        if spec is reading[0]:
            bed.wait(60.0)
        tokens = 50_000 if spec in reading else 100
        pinned = Routing(endpoint=spec.name)
        bed.take(f"{spec.name}-{len(bed.leases)}", input_tokens=tokens, stream=True, routing=pinned)
    lease = bed.take("new", input_tokens=200, stream=True)
    assert lease.endpoint in free
    assert lease.predicted_ttft_s is not None
    assert lease.predicted_ttft_s < 0.1
