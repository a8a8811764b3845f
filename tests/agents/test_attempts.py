"""The budget of extra attempts, and what is summed from receipts."""

from __future__ import annotations

import pickle

import pytest

from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.errors import AttemptsExhausted


def test_spending() -> None:
    attempts = Attempts(2)
    attempts.spend("a repair")
    assert (attempts.used, attempts.left, repr(attempts)) == (1, 1, "Attempts(1 of 2 used)")
    attempts.charge(3)
    assert (attempts.used, attempts.left) == (4, 0)
    with pytest.raises(AttemptsExhausted, match="no attempts left for a repair") as caught:
        attempts.spend("a repair", last="stars: too many")
    assert caught.value.last == "stars: too many"
    assert attempts.used == 4
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.attempts, copy.last, str(copy)) == (4, "stars: too many", str(caught.value))


def test_taking_ends_at_the_limit() -> None:
    attempts = Attempts(2)
    assert [attempts.take() for _ in range(3)] == [True, True, False]
    assert attempts.used == 2


def test_charging_nothing_changes_nothing() -> None:
    attempts = Attempts(0)
    attempts.charge(0)
    attempts.charge(-1)
    assert (attempts.used, attempts.left) == (0, 0)


def test_negative_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        Attempts(-1)
