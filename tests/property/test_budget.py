"""Budgets: reserved at every level or at none, and no interleaving passes a cap."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.budget import BudgetTree, Reservation
from agentcloud.cluster.errors import BudgetExceeded

PATHS = [(), ("job:a",), ("job:b",), ("job:a", "task:1"), ("job:a", "task:2"), ("job:b", "x", "y")]
CENTS = st.integers(0, 60).map(lambda cents: Decimal(cents) / 100)

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.sampled_from(PATHS), CENTS),
        st.tuples(st.just("settle"), st.integers(0, 50), st.integers(0, 100)),
        st.tuples(st.just("unknown"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("late"), st.integers(0, 50), st.integers(0, 100)),
    ),
    max_size=60,
)


@settings(max_examples=2000, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), CENTS), ACTIONS)
def test_no_interleaving_passes_a_cap(
    caps: dict[tuple[str, ...], Decimal], actions: list[tuple[str, Any, Any]]
) -> None:
    tree = BudgetTree(caps.get((), Decimal(1)))
    for path in PATHS[1:]:
        tree.open(path, caps.get(path))
    refused: list[tuple[str, tuple[str, ...]]] = []
    held: list[Reservation] = []
    unknown: list[Reservation] = []
    unchanged = True
    for what, where, amount in actions:
        if what == "reserve":
            before = tree.states()
            try:
                held.append(tree.reserve(where, amount))
            except BudgetExceeded as error:
                unchanged = unchanged and tree.states() == before
                refused.append((error.scope, where))
        elif what == "late" and unknown:
            each = unknown.pop(where % len(unknown))
            tree.settle(each, each.amount_usd * amount / 100)
        elif what in ("settle", "unknown") and held:
            each = held.pop(where % len(held))
            tree.settle(each, None if what == "unknown" else each.amount_usd * amount / 100)
            if what == "unknown":
                unknown.append(each)
        for state in tree.states():
            used = state.spent_usd + state.reserved_usd + state.unknown_usd
            assert state.limit_usd is None or used <= state.limit_usd
            assert min(state.spent_usd, state.reserved_usd, state.unknown_usd) >= 0
    assert unchanged, "a refused reservation holds nothing"
    assert all(scope == "fleet" or scope in path for scope, path in refused)
    root = tree.root
    assert root.reserved_usd == sum((each.amount_usd for each in held), Decimal(0))
    assert root.unknown_usd == sum((each.amount_usd for each in unknown), Decimal(0))


def test_a_budget_of_zero_refuses_paid_calls_and_passes_free_ones() -> None:
    tree = BudgetTree()
    tree.open(("job:a",), Decimal(0))
    with pytest.raises(BudgetExceeded, match="job:a") as caught:
        tree.reserve(("job:a", "task:1"), Decimal("0.01"))
    assert caught.value.scope == "job:a"
    tree.settle(tree.reserve(("job:a",), Decimal(0)), Decimal(0))
    assert repr(tree.root) == "<BudgetNode fleet limit=None spent=0 reserved=0 unknown=0>"


def test_unknown_money_stays_charged_until_it_is_known() -> None:
    tree = BudgetTree(Decimal(1))
    lost = tree.reserve((), Decimal("0.8"))
    tree.settle(lost, None)
    with pytest.raises(BudgetExceeded):
        tree.reserve((), Decimal("0.3"))
    tree.settle(lost, Decimal("0.1"))
    tree.settle(lost, Decimal("0.9"))
    assert tree.root.spent_usd == Decimal("0.1")
    assert tree.root.unknown_usd == 0


def test_a_closed_budget_stays_charged_above() -> None:
    tree = BudgetTree(Decimal(1))
    tree.open(("job:a",), None)
    held = tree.reserve(("job:a",), Decimal("0.5"))
    tree.close(("job:a",))
    tree.settle(held, Decimal("0.4"))
    assert [state.scope for state in tree.states()] == ["fleet"]
    assert tree.root.spent_usd == Decimal("0.4")
