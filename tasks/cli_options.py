"""Options that several commands share."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.duration import parse_duration
from agentcloud.tasks.money import parse_usd
from agentcloud.tasks.spec import OnBadInput, OnUnknown

AgentArg = Annotated[str, typer.Argument(help="The agent: path/to/file.py:name.")]
JobArg = Annotated[str, typer.Argument(help="The job's id, as `submit` printed it.")]
InputOpt = Annotated[
    Path,
    typer.Option(
        "--input",
        "-i",
        help="JSONL, CSV or Parquet, one task per line; or a folder: a saved Hugging Face dataset "
        "(of one split), or Parquet files.",
    ),
]
BudgetOpt = Annotated[
    str | None, typer.Option(help="Cap over the whole job: 2usd, $2, 0.50.", metavar="USD")
]
TaskBudgetOpt = Annotated[str | None, typer.Option(help="Cap over each task.", metavar="USD")]
BadInputOpt = Annotated[
    OnBadInput,
    typer.Option(help="A line that cannot be read stops the job before it starts, or is left out."),
]
KeyOpt = Annotated[
    str | None,
    typer.Option(
        help="Your own name for this job: the same key is the same job, so a command that is "
        "repeated goes on with it, or shows how it ended.",
        metavar="KEY",
    ),
]
LabelOpt = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME=VALUE; may be repeated.", metavar="NAME=VALUE"),
]
PriorityOpt = Annotated[
    int, typer.Option(help="Of its calls, beside other jobs': smaller is sooner.")
]
OnUnknownOpt = Annotated[
    OnUnknown,
    typer.Option(
        help="A paid call that was under way when its worker died stays charged, its answer is "
        "lost: send it again (and pay again), or let its task fail."
    ),
]
ConcurrencyOpt = Annotated[int, typer.Option(min=1, help="Tasks at once, over all workers.")]
WorkersOpt = Annotated[int, typer.Option(min=1, help="Worker processes that run the agents.")]
AttemptsOpt = Annotated[
    int,
    typer.Option(
        min=1, help="Starts of a task: again after a dead worker or a passing failure only."
    ),
]
ExtraAttemptsOpt = Annotated[
    int,
    typer.Option(
        min=0, help="Extra attempts of a task in all: calls sent again, outputs repaired, restarts."
    ),
]
TimeoutOpt = Annotated[
    float | None, typer.Option(min=0.001, help="Longest attempt at a task.", metavar="SECONDS")
]
DeadlineOpt = Annotated[
    str | None,
    typer.Option(
        help="How long each task may take: 90s, 15m, 6h. Calls that can wait for hours go by "
        "batches, at half the price, where fleet.yaml has a hosted model with `batch: true`.",
        metavar="TIME",
    ),
]
CascadeOpt = Annotated[
    Path | None,
    typer.Option(
        help="Cheap first, as this file of `agentcloud tune` says: for asks of tier auto and those "
        "that name no tier.",
        dir_okay=False,
    ),
]
AfterOpt = Annotated[
    list[str] | None,
    typer.Option(
        help="Start when this job has ended; not at all if it, or a task of it, failed. "
        "Repeatable.",
        metavar="JOB",
    ),
]
AddressOpt = Annotated[
    str | None,
    typer.Option(
        help="Cluster: http://HOST:8265, HOST:PORT of its GCS, or auto. (default: RAY_ADDRESS)"
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
GcsAddressOpt = Annotated[
    str | None,
    typer.Option(help="Cluster: HOST:PORT of its GCS, or auto. (default: RAY_ADDRESS, else auto)"),
]
FleetOpt = Annotated[
    Path, typer.Option("--fleet", "-f", help="The models to run on.", dir_okay=False)
]


def labels_option(labels: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` of each.

    Raises:
        ConfigError: one is not of that form.
    """
    found: dict[str, str] = {}
    for label in labels or []:
        name, equals, value = label.partition("=")
        if not equals or not name:
            raise ConfigError(f"{label!r} is not NAME=VALUE, e.g. team=search", where="--label")
        found[name] = value
    return found


def usd_option(text: str | None, option: str) -> Decimal | None:
    """An amount of money as typed for an option.

    Raises:
        ConfigError: it is none, or zero.
    """
    return None if text is None else parse_usd(text, where=option)


def duration_option(text: str | None, option: str) -> float | None:
    """A length of time as typed for an option, seconds.

    Raises:
        ConfigError: it is none.
    """
    return None if text is None else parse_duration(text, where=option)


def say(line: str) -> None:
    """Print a line for people: on stderr, whole, without colours of its own."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
