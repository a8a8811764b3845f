"""Closed, open, half-open: one probe at a time, and nothing that fails stays in rotation."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.circuit import FAILURES_TO_OPEN, LONGEST_COOLDOWN_S, Circuit, Standing
from tests.cluster.scheduling import Bed, failed, ok, replica

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["grant"] * 4 + ["ok", "fail", "fail", "rest", "nothing", "wait", "wait"]),
        st.integers(0, 100),
    ),
    max_size=150,
)


@settings(max_examples=500, deadline=None)
@given(STEPS)
def test_one_probe_at_a_time_and_no_cooldown_is_shortened(steps: list[tuple[str, int]]) -> None:
    circuit, now_s = Circuit(), 100.0
    open_calls: list[tuple[float, bool]] = []
    rested_until_s = 0.0
    for what, pick in steps:
        before, until_s = circuit.standing, circuit.until_s
        if what == "grant" and circuit.admits(len(open_calls), 8, now_s):
            probe = circuit.standing is not Standing.UP
            assert not (probe and any(is_probe for _, is_probe in open_calls)), "one at a time"
            assert now_s >= rested_until_s, "not before the server's own time"
            circuit.on_grant()
            open_calls.append((now_s, probe))
        elif what == "wait":
            now_s += pick / 10
        elif what != "grant" and open_calls:
            granted_s, probe = open_calls.pop(pick % len(open_calls))
            if what == "ok":
                circuit.on_ok(granted_s)
            elif what == "nothing":
                circuit.on_nothing(granted_s)
            else:
                rest_s = float(pick) if what == "rest" and pick else None
                circuit.on_failure("api_error", granted_s, now_s, rest_s)
                if rest_s and circuit.standing is Standing.COOLING:
                    rested_until_s = max(rested_until_s, now_s + rest_s)
            if probe:
                assert circuit.standing is (Standing.UP if what == "ok" else Standing.COOLING)
            elif before is not Standing.UP:
                assert circuit.standing is before, "older calls end no cooldown and no probe"
        assert circuit.until_s >= until_s, "never shortened"
        if circuit.standing is Standing.UP:
            assert circuit.failures < FAILURES_TO_OPEN


def test_a_late_failure_of_an_older_call_does_not_count_after_the_recovery() -> None:
    circuit = Circuit()
    for _ in range(3):
        circuit.on_failure("api_error", 10.0, 10.0, None)
    assert circuit.standing is Standing.COOLING
    circuit.on_grant()
    circuit.on_ok(11.0)
    for _ in range(9):
        circuit.on_failure("timeout_error", 10.0, 12.0, None)
    assert (circuit.standing, circuit.failures) == (Standing.UP, 0)
    circuit.on_failure("overloaded_error", 10.0, 12.0, 5.0)
    assert circuit.standing is Standing.COOLING, "a rest that the server asks for is always obeyed"
    assert circuit.until_s == 17.0


def test_25_server_errors_in_a_row_do_not_stay_in_rotation() -> None:
    """LiteLLM PR 34836: the third takes it out, and then one call in each cooldown meets it."""
    bed = Bed(replica(0, slots=64))
    asked = met = 0
    while met < 25 and asked < 100:
        asked += 1
        lease = bed.ask(f"c{asked}")
        if lease is not None:
            met += 1
            bed.tell(failed(lease))
    assert (met, asked) == (FAILURES_TO_OPEN, 100), "in the same moment"
    probes = 0
    for _ in range(3600):
        granted = bed.wait(1.0)
        assert len(granted) <= 1, "one probe at a time"
        for call_id in granted:
            probes += 1
            bed.tell(failed(bed.leases[call_id]))
    assert 1 <= probes <= 6 + 3600 / LONGEST_COOLDOWN_S, "cooldowns grow to a minute"
    while not (granted := bed.wait(1.0)):
        pass
    bed.tell(ok(bed.leases[granted[0]]))
    assert bed.core.endpoint("replica:m:0").circuit.standing is Standing.UP
