"""The tables of the scheduler's memory on disk, and the statements that write them."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    insert,
    or_,
    update,
)

from agentcloud.cluster.journal import LeaseState
from agentcloud.cluster.sql import Statement

META = MetaData()
FLEETS = Table(
    "fleets",
    META,
    Column("fleet", String(64), primary_key=True),
    Column("began_unix_s", Float, nullable=False),
)
# Money is text: SQLite has no exact decimals.
BUDGETS = Table(
    "budgets",
    META,
    Column("fleet", String(64), primary_key=True),
    Column("path", String(1024), primary_key=True),
    Column("limit_usd", String(64)),
    Column("spent_usd", String(64), nullable=False),
    Column("unknown_usd", String(64), nullable=False),
)
LEASES = Table(
    "paid_leases",
    META,
    Column("lease_id", String(128), primary_key=True),
    Column("fleet", String(64), nullable=False),
    Column("call_id", String(256), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("holder", String(256), nullable=False),
    Column("endpoint", String(256), nullable=False),
    Column("budget", String(1024), nullable=False),
    Column("reserved_usd", String(64), nullable=False),
    Column("granted_unix_s", Float, nullable=False),
    Column("expires_unix_s", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("cost_usd", String(64)),
    Column("ended_unix_s", Float),
    Column("step", String(64)),
)


def _told(name: str) -> BindParameter[Any]:
    """A value that each row tells."""
    return bindparam(name, None)


_END = (
    update(LEASES)
    .where(
        LEASES.c.lease_id == _told("id"),
        # A cost is told once; only what was open or unknown can learn it.
        or_(LEASES.c.state == LeaseState.GRANTED.value, LEASES.c.state == LeaseState.UNKNOWN.value),
    )
    .values(state=_told("new_state"), cost_usd=_told("cost"), ended_unix_s=_told("now_s"))
)
_DROP_LEASE = delete(LEASES).where(LEASES.c.lease_id == _told("id"))
_OF_BUDGET = BUDGETS.c.fleet == _told("of"), BUDGETS.c.path == _told("at")
_SUMS: Final[dict[str, BindParameter[Any]]] = {
    "limit_usd": _told("cap"),
    "spent_usd": _told("spent"),
    "unknown_usd": _told("unknown"),
}


class Statements:
    """Everything that is written, compiled for one database."""

    def __init__(self, engine: Engine) -> None:
        leases = [column.name for column in LEASES.columns]
        self.grant = Statement(
            insert(LEASES), engine, [n for n in leases if n not in ("cost_usd", "ended_unix_s")]
        )
        self.end = Statement(_END, engine)
        self.drop_lease = Statement(_DROP_LEASE, engine)
        self.forget = Statement(delete(BUDGETS).where(*_OF_BUDGET), engine)
        self.change = Statement(update(BUDGETS).where(*_OF_BUDGET).values(_SUMS), engine)
        named = {"fleet": _told("of"), "path": _told("at"), **_SUMS}
        self.open = Statement(insert(BUDGETS).values(named), engine)
