"""The scheduler's memory on disk: budgets and paid leases, in SQL.

SQLite in WAL mode unless fleet.yaml's `store:` names another database. One transaction a `write`;
what it wrote is on the disk when it returns, also if the machine loses power.

Every `agentcloud up` begins a fleet of its own, with nothing spent; the scheduler that Ray
restarts is of the same fleet and goes on with what it finds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from agentcloud.cluster.budget import Path
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.journal import (
    Batch,
    BudgetRow,
    LeaseEnd,
    LeaseState,
    PaidLease,
    Saved,
    SavedLease,
)
from agentcloud.cluster.sql import WHERE, cause, open_database
from agentcloud.cluster.store_tables import BUDGETS, FLEETS, LEASES, Statements

#: Ended leases are kept so long, for whoever asks what was paid.
KEEP_S: Final = 30 * 86400.0
#: Leases of unknown cost that are read back: their cost may still be told.
_UNKNOWN_KEPT: Final = 10_000


class Store:
    """Budgets and paid leases of one fleet. One thread at a time uses it."""

    def __init__(
        self, engine: Engine, fleet: str, *, wall_s: Callable[[], float] = time.time
    ) -> None:
        """As `open_store`, for an engine that is there.

        Raises:
            ConfigError: the database cannot be used.
        """
        self._engine = engine
        self._fleet = fleet
        self._wall_s = wall_s
        #: Budgets that have a row.
        self._paths: set[str] = set()
        try:
            with engine.begin() as connection:
                self.is_new = self._begin(connection)
            self._statements = Statements(engine)
        except SQLAlchemyError as error:
            engine.dispose()
            raise ConfigError(f"cannot be used ({cause(error)})", where=WHERE) from error

    def __repr__(self) -> str:
        return f"<Store {self._engine.url!r} fleet={self._fleet}>"

    def load(self) -> Saved:
        """What is spent, and every paid lease whose cost is not known yet."""
        now_s = self._wall_s()
        with self._engine.connect() as connection:
            budgets = [
                BudgetRow(
                    _path(row.path),
                    None if row.limit_usd is None else Decimal(row.limit_usd),
                    Decimal(row.spent_usd),
                    Decimal(row.unknown_usd),
                )
                for row in connection.execute(select(BUDGETS).where(BUDGETS.c.fleet == self._fleet))
            ]
            mine = select(LEASES).where(LEASES.c.fleet == self._fleet)
            granted = mine.where(LEASES.c.state == LeaseState.GRANTED)
            unknown = (
                mine.where(LEASES.c.state == LeaseState.UNKNOWN)
                .order_by(LEASES.c.ended_unix_s.desc())
                .limit(_UNKNOWN_KEPT)
            )
            leases = [
                _saved(row, now_s)
                for query in (granted, unknown)
                for row in connection.execute(query)
            ]
        return Saved(budgets, leases)

    def write(self, batch: Batch, *, again: bool = False) -> None:
        """Write a batch, all of it or nothing; it is on the disk when this returns.

        Args:
            batch: what to write.
            again: an earlier write of it failed; a lost connection may have hidden its success.

        Raises:
            SQLAlchemyError: it was not written.
        """
        now_s, fleet, write = self._wall_s(), self._fleet, self._statements
        rows = [_budget(row, fleet) for row in batch.budgets]
        told = {_key(row.path) for row in batch.budgets}
        gone = {_key(path) for path in batch.closed}
        fresh = told if again else told - self._paths
        with self._engine.begin() as connection:
            if again:
                write.drop_lease.run(connection, [{"id": each.lease_id} for each in batch.granted])
            write.grant.run(connection, [_granted(each, fleet, now_s) for each in batch.granted])
            write.end.run(connection, [_ended(each, now_s) for each in batch.ended])
            forgotten = gone | told if again else gone
            write.forget.run(connection, [{"of": fleet, "at": key} for key in forgotten])
            write.change.run(connection, [row for row in rows if row["at"] not in fresh])
            write.open.run(connection, [row for row in rows if row["at"] in fresh])
        self._paths = (self._paths - gone) | told

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def _begin(self, connection: Connection) -> bool:
        """Begin the fleet, or go on with it; whether it is new."""
        now_s = self._wall_s()
        connection.execute(
            delete(LEASES).where(
                LEASES.c.ended_unix_s < now_s - KEEP_S, LEASES.c.state != LeaseState.UNKNOWN
            )
        )
        known = connection.execute(select(FLEETS).where(FLEETS.c.fleet == self._fleet)).first()
        if known is None:
            connection.execute(insert(FLEETS), {"fleet": self._fleet, "began_unix_s": now_s})
        mine = select(BUDGETS.c.path).where(BUDGETS.c.fleet == self._fleet)
        self._paths = set(connection.execute(mine).scalars())
        return known is None


def open_store(url: str | None, fleet: str) -> Store:
    """Open the database of a fleet, and begin the fleet there if it is new.

    Args:
        url: as SQLAlchemy's; None: a file of SQLite in this machine's state folder.
        fleet: id of the fleet.

    Raises:
        ConfigError: it cannot be opened, or is of a newer agentcloud.
    """
    return Store(open_database(url, file="store.db"), fleet)


def _granted(lease: PaidLease, fleet: str, now_s: float) -> dict[str, Any]:
    return {
        "lease_id": lease.lease_id,
        "fleet": fleet,
        "call_id": lease.call_id,
        "attempt": lease.attempt,
        "holder": lease.holder,
        "endpoint": lease.endpoint,
        "budget": _key(lease.budget),
        "reserved_usd": str(lease.reserved_usd),
        "granted_unix_s": now_s,
        "expires_unix_s": now_s + lease.lifetime_s,
        "state": LeaseState.GRANTED.value,
        "step": lease.step,
    }


def _ended(end: LeaseEnd, now_s: float) -> dict[str, Any]:
    cost = None if end.cost_usd is None else str(end.cost_usd)
    return {"id": end.lease_id, "new_state": end.state.value, "cost": cost, "now_s": now_s}


def _budget(row: BudgetRow, fleet: str) -> dict[str, Any]:
    return {
        "of": fleet,
        "at": _key(row.path),
        "cap": None if row.limit_usd is None else str(row.limit_usd),
        "spent": str(row.spent_usd),
        "unknown": str(row.unknown_usd),
    }


def _saved(row: Any, now_s: float) -> SavedLease:
    lease = PaidLease(
        row.lease_id,
        row.call_id,
        row.attempt,
        row.holder,
        row.endpoint,
        _path(row.budget),
        Decimal(row.reserved_usd),
        row.expires_unix_s - row.granted_unix_s,
        row.step,
    )
    return SavedLease(lease, row.expires_unix_s - now_s, row.state == LeaseState.GRANTED)


def _key(path: Path) -> str:
    return json.dumps(path)


def _path(key: str) -> Path:
    return tuple(json.loads(key))
