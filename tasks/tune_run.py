"""A labelled sample through both tiers, by the real path: two jobs, and their lines compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from agentcloud.cluster.errors import ConfigError, TaskError
from agentcloud.cluster.tiers import FleetTiers
from agentcloud.tasks.cascade_file import AgreementSetting, CascadeSetting
from agentcloud.tasks.results import read_results
from agentcloud.tasks.sources import BadInput, read_inputs
from agentcloud.tasks.spec import JobRecord, JobSpec, JobState
from agentcloud.tasks.tune import Trial, matches

#: Fewer labelled tasks tell nothing, half of them held out.
LEAST_TASKS = 20
#: How a cheap answer that is none ends its task.
_NO_ANSWER = "OutputInvalid"
#: Ends that a cascade has too, and that are an answer's fault: counted as wrong.
_WRONG = (_NO_ANSWER, "Refused")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sample without its labels, and the labels in its order."""

    rows: list[dict[str, Any]]
    labels: list[Any]

    def write(self, path: Path) -> dict[str, Any]:
        """Write the rows, so that no agent sees a label; returns the labels by task."""
        with path.open("w") as file:
            for row in self.rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        ids = [entry.id for entry in read_inputs(path)]
        return dict(zip(ids, self.labels, strict=True))


@dataclass(frozen=True, slots=True)
class Sampled:
    """What both tiers made of a sample.

    Attributes:
        left_out: tasks that failed by no fault of an answer (an endpoint, a time limit).
        why_left_out: the first one's error.
    """

    trials: list[Trial]
    left_out: int
    why_left_out: str | None


def read_labelled(source: Path, label: str) -> Labelled:
    """Read a sample and take its labels out.

    Raises:
        ConfigError: it cannot be read, lacks a label, or holds too little.
    """
    rows, labels = [], []
    for entry in read_inputs(source):
        if isinstance(entry, BadInput):
            raise ConfigError(f"{entry.why}; mend it")
        item, number = entry.item, entry.index + 1
        if not isinstance(item, dict) or label not in item:
            known = ", ".join(item) if isinstance(item, dict) else "it is no object"
            raise ConfigError(
                f"input {number} has no field {label!r} ({known}); name the field that holds the "
                f"right answer with --label",
                where=str(source),
            )
        labels.append(item[label])
        rows.append({key: value for key, value in item.items() if key != label})
    if len(rows) < LEAST_TASKS:
        raise ConfigError(
            f"holds {len(rows)} labelled inputs; give {LEAST_TASKS} or more, some hundreds are "
            f"better",
            where=str(source),
        )
    return Labelled(rows, labels)


def pair_of(fleet: FleetTiers, given: str | None, *, logprobs: bool) -> tuple[str, str]:
    """The cheap tier and the dear one.

    Args:
        fleet: its tiers.
        given: `small,large`; None: the fleet's cheapest and dearest.
        logprobs: the cheap one must tell log-probabilities.

    Raises:
        ConfigError: they are no two tiers of this fleet.
    """
    named = tuple(part.strip() for part in given.split(",")) if given else fleet.ordered
    pair = (named[0], named[-1])
    if pair[0] == pair[1] or (given and len(named) != 2):
        raise ConfigError(
            f"tuning takes two tiers, not {', '.join(named)}; give --tiers CHEAP,DEAR "
            f"(the fleet has {', '.join(fleet.ordered)})",
            where="--tiers",
        )
    for tier in pair:
        if not fleet.models_of(tier):
            raise ConfigError(
                f"no tier or model {tier!r} in this fleet ({', '.join(fleet.ordered)})",
                where="--tiers",
            )
    if both := fleet.models_of(pair[0]) & fleet.models_of(pair[1]):
        raise ConfigError(f"{min(both)} serves both {pair[0]} and {pair[1]}", where="--tiers")
    if logprobs and not fleet.has_local(pair[0]):
        raise ConfigError(
            f"no local model serves {pair[0]!r}, and hosted ones tell no log-probabilities; use "
            f"--signal agreement",
            where="--signal",
        )
    return pair


def measuring(tier: str, sampled: AgreementSetting | None) -> CascadeSetting:
    """The cheap tier as a cascade would ask it, its signal taken and no answer refused."""
    if sampled is not None:
        return CascadeSetting(tiers=(tier,), agreement=sampled, measure=True)
    return CascadeSetting(tiers=(tier,), logprob=-math.inf, measure=True)


def run_both(
    spec: JobSpec,
    cascades: Sequence[CascadeSetting],
    run: Callable[[JobSpec], JobRecord],
) -> list[dict[str, dict[str, Any]]]:
    """Run the sample once by each cascade; result lines by task.

    Args:
        spec: the job; its budget is for all runs together.
        cascades: one run each.
        run: runs a job to its end.

    Raises:
        TaskError: a run did not get through.
    """
    lines, left_usd = [], spec.budget_usd
    for number, cascade in enumerate(cascades):
        tier = cascade.tiers[0]
        if left_usd is not None and left_usd <= 0:
            raise TaskError(f"the budget was used up before {tier} was asked; raise --budget")
        one = spec.model_copy(
            update={
                "job_id": f"{spec.job_id}-{number}",
                "output": spec.output.with_name(f"{number}-results.jsonl"),
                "budget_usd": left_usd,
                "cascade": cascade,
            }
        )
        record = run(one)
        if record.state is not JobState.DONE:
            raise TaskError(
                f"{tier}: {record.label} after {record.done + record.failed} of {record.total}"
                f"{f': {record.detail}' if record.detail else ''}; nothing was written"
            )
        if left_usd is not None:
            left_usd -= record.cost_usd
        lines.append({line["id"]: line for line in read_results(one.output)})
    return lines


def trials_of(
    cheap: Mapping[str, Mapping[str, Any]],
    dear: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, Any],
    *,
    label: str,
    signal: str,
) -> Sampled:
    """Hold both tiers' result lines against the labels.

    Args:
        cheap: lines of the cheap tier by task.
        dear: those of the dear one.
        labels: by task.
        label: the labels' field.
        signal: key of a call's signal: `mean_logprob` or `agreement`.

    Raises:
        ConfigError: the cost of a tier's calls is not known, or no task can be used.
    """
    trials, failures = [], []
    for id_, true in labels.items():
        pair = (cheap[id_], dear[id_])
        if failed := [line for line in pair if _fails_otherwise(line)]:
            failures.append(str(failed[0]["error"]))
            continue
        trials.append(
            Trial(
                id_,
                _signal(pair[0], signal),
                _is_right(pair[0], true, label),
                _is_right(pair[1], true, label),
                _cost(pair[0], "the cheap tier"),
                _cost(pair[1], "the dear tier"),
            )
        )
    if len(trials) < LEAST_TASKS:
        first = failures[0] if failures else "none ran"
        raise ConfigError(
            f"only {len(trials)} of {len(labels)} tasks can be used; the first that failed: {first}"
        )
    if all(trial.signal in (None, math.inf) for trial in trials):
        raise ConfigError(
            "no answer of the cheap tier can be told apart from another; the agent must ask with "
            'tier="auto" or without a tier of its own'
        )
    return Sampled(trials, len(failures), failures[0] if failures else None)


def _fails_otherwise(line: Mapping[str, Any]) -> bool:
    return line["status"] == "failed" and line["error_kind"] not in _WRONG


def _is_right(line: Mapping[str, Any], true: Any, label: str) -> bool:
    return line["status"] == "done" and matches(line["output"], true, label)


def _signal(line: Mapping[str, Any], key: str) -> float | None:
    """The task's least sure ask; None: an answer that could not be taken; inf: a refusal."""
    if line["status"] == "failed":
        return None if line["error_kind"] == _NO_ANSWER else math.inf
    told = [call[key] for call in line["calls"] if key in call]
    return min(told) if told else math.inf


def _cost(line: Mapping[str, Any], who: str) -> Decimal:
    if line["cost_usd"] is None:
        raise ConfigError(
            f"what a call of {who} costs is not known, so that thresholds cannot be compared; give "
            f"its price in fleet.yaml (usd_per_gpu_hour of a local model, prices of a hosted one)"
        )
    return Decimal(line["cost_usd"])
