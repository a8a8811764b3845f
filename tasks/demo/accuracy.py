"""The demo's answers held against the labels that the tickets were written for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.table import Table

from agentcloud.tasks.demo.triage import Triage
from agentcloud.tasks.money import show_usd

FIELDS = tuple(Triage.model_fields)


@dataclass(frozen=True, slots=True)
class Score:
    """How one model did.

    Attributes:
        answers: tickets that it answered.
        whole: share of tickets with every field right, 0 to 1.
        by_field: share of tickets with that field right.
        cost_usd: what its calls cost; None: unknown.
    """

    tier: str
    endpoint: str
    answers: int
    whole: float
    by_field: Mapping[str, float]
    cost_usd: Decimal | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, money as text."""
        return {
            "tier": self.tier,
            "endpoint": self.endpoint,
            "answers": self.answers,
            "accuracy": self.whole,
            "by_field": dict(self.by_field),
            "cost_usd": None if self.cost_usd is None else format(self.cost_usd, "f"),
        }


def expectations(tickets: Path) -> dict[str, dict[str, str]]:
    """Ticket id -> its true labels."""
    rows = (json.loads(line) for line in tickets.read_text().splitlines())
    return {row["id"]: row["expected"] for row in rows}


def scores(
    results: Iterable[Mapping[str, Any]],
    expected: Mapping[str, Mapping[str, str]],
    endpoint_of: Mapping[str, str],
) -> list[Score]:
    """Score each tier over the tasks that were done.

    Args:
        results: lines of the results file.
        expected: labels by ticket id.
        endpoint_of: tier -> the endpoint that served it in this job.
    """
    done = [line for line in results if line["status"] == "done"]
    return [
        _score(tier, endpoint, done, expected) for tier, endpoint in endpoint_of.items() if done
    ]


def _score(
    tier: str,
    endpoint: str,
    done: list[Mapping[str, Any]],
    expected: Mapping[str, Mapping[str, str]],
) -> Score:
    right = [
        {name: line["output"][tier][name] == expected[line["id"]][name] for name in FIELDS}
        for line in done
    ]
    costs = [
        call["cost_usd"] for line in done for call in line["calls"] if call["endpoint"] == endpoint
    ]
    return Score(
        tier=tier,
        endpoint=endpoint,
        answers=len(done),
        whole=sum(all(fields.values()) for fields in right) / len(done),
        by_field={name: sum(fields[name] for fields in right) / len(done) for name in FIELDS},
        cost_usd=None if None in costs else sum(map(Decimal, costs), Decimal(0)),
    )


def accuracy_table(rows: list[Score]) -> Table:
    """One row per model."""
    table = Table(title="answers against the labels (tickets of another seed and wording)")
    table.title_justify = "left"
    table.add_column("tier")
    table.add_column("endpoint", overflow="fold", min_width=20)
    for heading in ("tickets", "all right", *FIELDS, "cost", "per 1,000"):
        table.add_column(heading, justify="right")
    for row in rows:
        per_1000 = None if row.cost_usd is None else row.cost_usd * 1000 / row.answers
        table.add_row(
            row.tier,
            row.endpoint,
            str(row.answers),
            f"{row.whole:.1%}",
            *(f"{row.by_field[name]:.1%}" for name in FIELDS),
            show_usd(row.cost_usd),
            show_usd(per_1000),
        )
    return table
