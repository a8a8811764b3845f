"""The store, on real SQLite and PostgreSQL: what was written is found; broken ones are refused."""

from __future__ import annotations

import threading
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text

from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.journal import Batch, BudgetRow, LeaseEnd, LeaseState, PaidLease
from agentcloud.cluster.sql import open_database
from agentcloud.cluster.store import Store, open_store
from agentcloud.cluster.store_writer import StoreWriter

JOB = ("job:a", "task:a/1")


def lease(lease_id: str, usd: str = "0.25") -> PaidLease:
    return PaidLease(
        lease_id, f"call-{lease_id}", 1, "host:1:x", "main/haiku", JOB, Decimal(usd), 60.0
    )


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'deep' / 'store.db'}"


def test_a_fleet_finds_what_it_wrote_and_another_finds_nothing(database: str) -> None:
    store = open_store(database, "one")
    assert store.is_new
    store.write(
        Batch(
            [lease("a"), lease("b"), lease("c")],
            [LeaseEnd("b", LeaseState.SETTLED, Decimal("0.1"))],
            [
                BudgetRow((), None, Decimal("0.10"), Decimal(0)),
                BudgetRow(("job:a",), Decimal("5.5"), Decimal("0.1"), Decimal(0)),
            ],
        )
    )
    store.write(
        Batch(
            ended=[
                LeaseEnd("c", LeaseState.UNKNOWN, None),
                LeaseEnd("b", LeaseState.FAILED, Decimal(9)),  # told twice: changes nothing
            ],
            budgets=[BudgetRow((), None, Decimal("0.1"), Decimal("0.25"))],
            closed=[("job:a",)],
        )
    )
    store.close()
    found = open_store(database, "one")
    assert not found.is_new
    saved = found.load()
    assert saved.budgets == [BudgetRow((), None, Decimal("0.1"), Decimal("0.25"))]
    assert [(each.row, each.is_open) for each in saved.leases] == [
        (lease("a"), True),
        (lease("c"), False),
    ]
    assert all(50 < each.left_s <= 60 for each in saved.leases)
    # The cost of an unknown one becomes known.
    found.write(Batch(ended=[LeaseEnd("c", LeaseState.SETTLED, Decimal("0.2"))]))
    assert [each.row.lease_id for each in found.load().leases] == ["a"]
    # Told again, as after a connection that was lost in the middle of a commit.
    found.write(Batch([lease("d")], budgets=[BudgetRow((), None, Decimal(1), Decimal(0))]))
    again = Batch([lease("d")], budgets=[BudgetRow((), None, Decimal(2), Decimal(0))])
    found.write(again, again=True)
    assert found.load().budgets == list(again.budgets)
    assert {each.row.lease_id for each in found.load().leases} == {"a", "d"}
    found.close()
    other = open_store(database, "two")
    assert other.is_new
    assert (other.load().budgets, other.load().leases) == ([], [])
    other.close()


@pytest.mark.parametrize(
    "bad", ["no url", "oracle-of-delphi://x", "sqlite:////proc/1/no/store.db", "mysql://x/y"]
)
def test_a_database_that_cannot_be_opened_is_one_clear_line(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"store") as caught:
        open_store(bad, "one")
    assert "\n" not in str(caught.value)


def test_what_comes_while_it_writes_is_one_transaction(tmp_path: Path) -> None:
    engine = open_database(url(tmp_path), file="store.db")
    commits = []
    go_on = threading.Event()
    store = Store(engine, "one")

    def committing(_connection: object) -> None:
        go_on.wait(10)
        commits.append(1)

    event.listen(engine, "commit", committing)
    writer = StoreWriter(store)
    order: list[int] = []
    for index in range(200):
        writer.put(Batch([lease(str(index))]), partial(order.append, index))
    go_on.set()
    writer.close()
    assert order == list(range(200))
    assert len(commits) <= 3, "the first, and what came while it was written"
    again = open_store(url(tmp_path), "one")
    assert len(again.load().leases) == 200
    again.close()


def test_a_write_that_fails_is_tried_again_and_tells_nobody_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentcloud.cluster.group_writer.RETRY_S", 0.01)
    store = open_store(url(tmp_path), "one")
    blocker = create_engine(url(tmp_path))
    with blocker.begin() as connection:
        connection.execute(text("alter table paid_leases rename to gone"))
    writer = StoreWriter(store)
    told = threading.Event()
    writer.put(Batch([lease("a")]), told.set)
    assert not told.wait(0.2), "nothing is on disk"
    with blocker.begin() as connection:
        connection.execute(text("alter table gone rename to paid_leases"))
    blocker.dispose()
    assert told.wait(10)
    assert [each.row.lease_id for each in store.load().leases] == ["a"]
    writer.close()
