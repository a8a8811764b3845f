"""Health is progress."""

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.config_rules import Health
from agentcloud.cluster.contracts import LoadReport
from agentcloud.cluster.watch import (
    RESTART_CAP_S,
    Observation,
    death_reason,
    restart_delay_s,
)

HEALTH = Health(stall_s=30)


def seen(*, running: int = 0, waiting: int = 0, age_s: float = 0, at_s: float = 0) -> Observation:
    return Observation(LoadReport(running=running, waiting=waiting, progress_age_s=age_s), at_s)


def test_requests_without_progress_are_death() -> None:
    why = death_reason(seen(running=3, waiting=1, age_s=31), 0, HEALTH)
    assert why == "4 requests and no new token for 31 s"


def test_a_stuck_event_loop_counts_from_its_last_report() -> None:
    assert death_reason(seen(running=1, age_s=10), 19, HEALTH) is None
    assert death_reason(seen(running=1, age_s=10), 21, HEALTH) is not None


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_an_idle_replica_is_never_dead_however_slow_its_answer(age_s: float, now_s: float) -> None:
    assert death_reason(seen(age_s=age_s), now_s, HEALTH) is None


@given(st.integers(1, 100), st.floats(0, 29.9))
def test_a_busy_replica_that_makes_progress_lives(running: int, age_s: float) -> None:
    assert death_reason(seen(running=running, age_s=age_s), 0, HEALTH) is None


@given(st.integers(0, 10_000))
def test_restarts_back_off_and_are_capped(restarts: int) -> None:
    assert restart_delay_s(restarts) <= restart_delay_s(restarts + 1) <= RESTART_CAP_S
    assert restart_delay_s(0) == 0
