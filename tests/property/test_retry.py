"""Retries: by the body's error type, with full jitter, never beyond what is allowed."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.config_rules import Retry
from agentcloud.cluster.errors import (
    BackendError,
    BudgetExceeded,
    CallTimeout,
    InvalidRequest,
    Overloaded,
    RateLimited,
    ReplicaLost,
    Unusable,
)
from agentcloud.cluster.retry import Elsewhere, Fail, Wait, decide, is_unusable

RETRY = Retry(max_attempts=4, base_s=0.5, max_backoff_s=30.0)


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("invalid_request_error", 400, Fail),
        ("authentication_error", 401, Fail),
        ("billing_error", 402, Fail),
        ("permission_error", 403, Fail),
        ("not_found_error", 404, Fail),
        ("conflict_error", 409, Wait),
        ("request_too_large", 413, Fail),
        ("rate_limit_error", 429, Elsewhere),
        ("api_error", 500, Elsewhere),
        ("timeout_error", 504, Elsewhere),
        ("overloaded_error", 529, Elsewhere),
        ("overloaded_error", 200, Elsewhere),
        ("never_heard_of", 400, Fail),
        ("never_heard_of", 503, Elsewhere),
    ],
)
def test_the_table(kind: str, status: int, expected: type) -> None:
    error = BackendError("x", kind=kind, status=status)
    assert type(decide(error, 1, 0.0, RETRY, random.Random(1))) is expected


@given(st.integers(1, 200), st.integers(0, 2**32))
def test_full_jitter_stays_under_the_doubled_backoff(attempt: int, seed: int) -> None:
    decision = decide(Overloaded("x"), attempt, 0.0, RETRY, random.Random(seed), max_attempts=1000)
    assert isinstance(decision, Elsewhere)
    assert 0.0 <= decision.wait_s <= min(30.0, 0.5 * 2 ** min(attempt - 1, 60))


@given(st.floats(0, 1e5))
def test_retry_after_is_honoured_in_full(asked_s: float) -> None:
    decision = decide(RateLimited("x", retry_after_s=asked_s), 1, 0.0, RETRY, random.Random(1))
    assert isinstance(decision, Elsewhere)
    assert decision.same_after_s == asked_s


def test_what_is_not_repeated() -> None:
    rng = random.Random(1)
    assert isinstance(decide(ReplicaLost("x"), 4, 0.0, RETRY, rng), Fail), "attempts"
    assert isinstance(decide(ReplicaLost("x"), 1, 9.0, RETRY, rng, deadline_s=9.0), Fail)
    assert isinstance(decide(ReplicaLost("x"), 1, 0.0, RETRY, rng, delivered=True), Fail)
    budget = BudgetExceeded("job:a", used_usd=Decimal(1), limit_usd=Decimal(1))
    assert isinstance(decide(budget, 1, 0.0, RETRY, rng), Fail)
    lost = CallTimeout("x", maybe_paid=True)
    assert isinstance(decide(lost, 1, 0.0, RETRY, rng, resend_maybe_paid=False), Fail)
    again = decide(lost, 1, 0.0, RETRY, rng)
    assert isinstance(again, Elsewhere)
    assert "may have been paid for" in again.reason


def test_a_lost_replica_is_left_at_once() -> None:
    decision = decide(ReplicaLost("x", endpoint="replica:m:0"), 1, 0.0, RETRY, random.Random(1))
    assert decision == Elsewhere(0.0, "replica:m:0 was lost")


def test_unusable_endpoints() -> None:
    assert is_unusable(Unusable("x"))
    assert not is_unusable(InvalidRequest("x"))
