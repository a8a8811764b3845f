"""`agentcloud tune`: the threshold of a cascade, learned from a labelled sample."""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cascade_file import AgreementSetting, CascadeSetting, save_cascade
from agentcloud.tasks.cli_options import (
    AgentArg,
    BudgetOpt,
    ConcurrencyOpt,
    FleetOpt,
    InputOpt,
    JsonOpt,
    TimeoutOpt,
    usd_option,
)
from agentcloud.tasks.render import ProgressView, stdout_console
from agentcloud.tasks.spec import JobRecord, JobSpec, new_job_id
from agentcloud.tasks.tune import Rule, choose, curve, outcome, split
from agentcloud.tasks.tune_render import tune_table, verdict

if TYPE_CHECKING:
    from agentcloud.cluster.config import FleetConfig
    from agentcloud.cluster.tiers import FleetTiers


class Signal(StrEnum):
    """What tells how sure a cheap answer is."""

    LOGPROB = "logprob"
    AGREEMENT = "agreement"


def tune_command(
    agent: AgentArg,
    input_file: InputOpt,
    label: Annotated[
        str,
        typer.Option(help="Field of the input that holds the right answer; agents never see it."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The cascade's file.", dir_okay=False)
    ] = Path("cascade.json"),
    at_least_quality: Annotated[
        float, typer.Option(min=0, max=2, help="Share of the dear tier's quality to reach.")
    ] = 0.95,
    signal: Annotated[
        Signal, typer.Option(help="Of a local model's own sureness, or of samples that agree.")
    ] = Signal.LOGPROB,
    samples: Annotated[int, typer.Option(min=2, help="With --signal agreement.")] = 3,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Of the samples; at 0 they do not differ.")
    ] = 1.0,
    tiers: Annotated[
        str | None,
        typer.Option(
            help="The two to compare. [default: the fleet's cheapest and dearest]",
            metavar="CHEAP,DEAR",
        ),
    ] = None,
    budget: BudgetOpt = None,
    fleet: FleetOpt = Path("fleet.yaml"),
    address: Annotated[
        str | None,
        typer.Option(help="A running cluster's fleet: HOST:PORT or auto. (default: RAY_ADDRESS)"),
    ] = None,
    concurrency: ConcurrencyOpt = 64,
    task_timeout: TimeoutOpt = None,
    folder: Annotated[
        Path, typer.Option(help="Where the runs' files go, in a folder of their own.")
    ] = Path("agentcloud-runs"),
    seed: Annotated[int, typer.Option(help="Which half is held out.")] = 7,
    as_json: JsonOpt = False,
) -> None:
    """Find when a cheap answer is good enough: the curve of cost against quality, and a choice.

    Every input is answered by both tiers once. Half of them choose the cheapest threshold that
    reaches --at-least-quality of the dear tier's quality; the other half judges it. Asks of tier
    auto, and those that name no tier, are tuned. Examples:

        agentcloud tune examples/triage.py:triage --input labelled.jsonl --label expected

        agentcloud run examples/triage.py:triage --input tickets.jsonl --cascade cascade.json
    """
    import ray

    from agentcloud.cluster.config import load_fleet
    from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME
    from agentcloud.tasks.cli_run import check_agent, follow_job
    from agentcloud.tasks.jobs import start_job
    from agentcloud.tasks.session import (
        cluster_for_run,
        graceful_interrupts,
        terminate_as_interrupt,
    )
    from agentcloud.tasks.tune_run import measuring, pair_of, read_labelled, run_both, trials_of

    limit_usd = usd_option(budget, "--budget")
    if not output.absolute().parent.is_dir():  # known before anything is paid
        raise ConfigError("its folder is not there; make it first", where=str(output))
    sample = read_labelled(input_file, label)
    check_agent(agent, Path.cwd())
    asked = AgreementSetting(n=samples, at_least=0, temperature=temperature)
    sampled = asked if signal is Signal.AGREEMENT else None
    logprobs = signal is Signal.LOGPROB
    if address is None and "RAY_ADDRESS" not in os.environ:
        # A wrong tier costs no start of an engine.
        pair_of(_tiers(load_fleet(fleet)), tiers, logprobs=logprobs)
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(ProgressView())
        stack.enter_context(terminate_as_interrupt())
        stack.enter_context(
            cluster_for_run(address=address, fleet=fleet, dashboard=False, on_progress=view.note)
        )
        scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
        cheap, dear = pair_of(_tiers(ray.get(scheduler.config.remote())), tiers, logprobs=logprobs)
        run_folder = _run_folder(folder)
        spec = JobSpec(
            job_id=new_job_id(),
            agent=agent,
            input=run_folder / "sample.jsonl",
            output=run_folder / "results.jsonl",
            source=str(input_file),
            budget_usd=limit_usd,
            concurrency=concurrency,
            task_timeout_s=task_timeout,
            folder=Path.cwd(),
        )
        labels = sample.write(spec.input)
        interrupts = stack.enter_context(graceful_interrupts())

        def run(one: JobSpec) -> JobRecord:
            assert one.cascade is not None
            view.note(f"{one.cascade.tiers[0]}: {len(labels)} tasks")
            job = start_job(one, total=len(labels))
            try:
                record = follow_job(job, view, interrupts)
            finally:
                job.close()
            if interrupts.count:
                raise typer.Exit(130)
            return record

        cascades = [measuring(cheap, sampled), CascadeSetting(tiers=(dear,))]
        by_cheap, by_dear = run_both(spec, cascades, run)
    key = "mean_logprob" if logprobs else "agreement"
    seen = trials_of(by_cheap, by_dear, labels, label=label, signal=key)
    fit, test = split(seen.trials, seed)
    points, dear_alone = curve(fit), outcome(fit, Rule.DEAR)
    chosen = choose(points, dear_alone, at_least_quality)
    held_out = {
        rule: outcome(test, rule, chosen.threshold if rule is Rule.THRESHOLD else None)
        for rule in {Rule.CHEAP, Rule.DEAR, chosen.rule}
    }
    report: dict[str, Any] = {
        "agent": agent,
        "input": str(input_file),
        "tiers": [cheap, dear],
        "signal": str(signal),
        "at_least_quality": at_least_quality,
        "left_out": seen.left_out,
        "why_left_out": seen.why_left_out,
        "chosen": {"fit": chosen.to_dict(), "held_out": held_out[chosen.rule].to_dict()},
        "cheap_alone": {"fit": points[0].to_dict(), "held_out": held_out[Rule.CHEAP].to_dict()},
        "dear_alone": {"fit": dear_alone.to_dict(), "held_out": held_out[Rule.DEAR].to_dict()},
    }
    tuned = report | {"seed": seed, "made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    setting = _setting((cheap, dear), chosen.rule, chosen.threshold, sampled, tuned)
    save_cascade(output, setting)
    if as_json:
        told = report | {"curve": [point.to_dict() for point in points], "output": str(output)}
        typer.echo(json.dumps(told | {"runs": str(run_folder)}, indent=2))
        return
    console = stdout_console()
    console.print(tune_table(points, dear_alone, chosen, test, (cheap, dear), str(signal)))
    for line in verdict(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"written: {output}; use it: agentcloud run {agent} --cascade {output} --input ...",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _setting(
    pair: tuple[str, str],
    rule: Rule,
    threshold: float | None,
    sampled: AgreementSetting | None,
    tuned: dict[str, Any],
) -> CascadeSetting:
    """The choice as a cascade: the dear tier alone is a cascade of one."""
    if rule is Rule.DEAR:
        return CascadeSetting(tiers=(pair[1],), tuned=tuned)
    if rule is Rule.CHEAP or threshold is None:
        # Samples that need not agree still vote: that is what was measured.
        return CascadeSetting(tiers=pair, agreement=sampled, tuned=tuned)
    if sampled is not None:
        least = sampled.model_copy(update={"at_least": threshold})
        return CascadeSetting(tiers=pair, agreement=least, tuned=tuned)
    return CascadeSetting(tiers=pair, logprob=min(0.0, threshold), tuned=tuned)


def _tiers(config: FleetConfig) -> FleetTiers:
    from agentcloud.cluster.catalog import load_catalog
    from agentcloud.cluster.tiers import FleetTiers

    return FleetTiers.of(config, load_catalog().with_overrides(config.hosted))


def _run_folder(folder: Path) -> Path:
    path = folder / f"tune-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make it ({error.strerror})", where=str(path)) from None
    return path.absolute()
