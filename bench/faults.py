"""`make faults`: every process of a job is killed for real, and between any two of its states.

Each round is a job of its own. What it lost, doubled or paid twice is counted from outside: its
results file, and the sandbox's own list of what it answered and billed. Figures go to
`bench/out/faults.json`, fault by fault, and as a table to `docs/faults.md`.

    python -m bench.faults                      # all, 10 rounds each (3 where an engine starts)
    python -m bench.faults --only worker,ledger --rounds 3 --more
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from bench.canary import leaks
from bench.fault_kinds import FAULTS
from tests.faults.job_world import World, job_world
from tests.faults.running_job import Verdict

OUT: Final = Path(__file__).parent / "out" / "faults.json"
PAGE: Final = Path(__file__).parents[1] / "docs" / "faults.md"
TASKS: Final = 500
#: Lines after which the fault strikes.
STRIKES_AT: Final = 100


def one_round(world: World, name: str, number: int, tasks: int) -> Verdict:
    """One job with one fault in its middle."""
    fault = FAULTS[name]
    with world.job(f"{name}-{number}", tasks, **fault.job) as job:
        job.until(STRIKES_AT)
        struck_s = time.monotonic()
        fault.strike(world, job)
        if name != "none":
            job.recovered(since_s=struck_s)
        return job.verdict()


def measure(names: Sequence[str], rounds: int, tasks: int, *, more: bool = False) -> None:
    """Run faults, those of one world after another; keep the figures as they come.

    Args:
        names: of the faults.
        rounds: of each; fewer where an engine starts.
        tasks: of each round's job.
        more: add to the rounds that are kept.
    """
    ordered = sorted(names, key=lambda name: FAULTS[name].setting.__name__)
    for _, group in groupby(ordered, key=lambda name: FAULTS[name].setting.__name__):
        same = list(group)
        folder = Path(tempfile.mkdtemp(prefix="agentcloud-faults-"))
        try:
            with FAULTS[same[0]].setting() as setting, job_world(folder, setting) as world:
                for name in same:
                    few = max(1, rounds * 3 // 10) if FAULTS[name].starts_engine else rounds
                    before = kept().get(name, {}).get("all", []) if more else []
                    verdicts = [Verdict.from_dict(each) for each in before]
                    for number in range(few):
                        verdicts.append(one_round(world, name, number, tasks))
                        print(f"{name} {number + 1}/{few}: {verdicts[-1]}", flush=True)
                        keep(name, summary(verdicts) | {"tasks": tasks})
                keep("canary", {setting_of(same[0]): leaks(world)}, into=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def setting_of(name: str) -> str:
    """The name of a fault's world."""
    return FAULTS[name].setting.__name__.strip("_")


def keep(name: str, found: dict[str, Any], *, into: bool = False) -> None:
    """Add to the file of all figures."""
    figures = kept()
    figures[name] = (figures.get(name, {}) | found) if into else found
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2))


def kept() -> dict[str, Any]:
    """All figures so far."""
    return json.loads(OUT.read_text()) if OUT.exists() else {}


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What the rounds of one fault came to."""
    recover = sorted(each.recover_s for each in verdicts if each.recover_s is not None)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": len(verdicts),
        "tasks_lost": sum(each.lost for each in verdicts),
        "duplicated": sum(each.duplicated for each in verdicts),
        "tasks_failed": sum(each.failed for each in verdicts),
        "paid_twice": sum(each.paid_twice for each in verdicts),
        "paid_twice_untold": sum(max(0, each.paid_twice - each.told) for each in verdicts),
        "usd_over_budget": str(sum((each.over_usd for each in verdicts), Decimal(0))),
        "usd_uncharged": str(sum((each.uncharged_usd for each in verdicts), Decimal(0))),
        "steps_reused": sum(each.reused for each in verdicts),
        "recover_s_median": recover[len(recover) // 2] if recover else None,
        "recover_s_max": recover[-1] if recover else None,
        "clean": all(each.is_clean for each in verdicts),
        "all": [each.to_dict() for each in verdicts],
    }


def page(figures: dict[str, Any]) -> str:
    """The figures as a page of documentation."""
    heads = (
        "fault", "tasks", "rounds", "lost", "doubled", "failed", "paid twice", "of these untold",
        "over budget", "uncharged", "recovery median / max", "measured",
    )  # fmt: skip
    lines = [
        "# Faults, injected for real",
        "",
        "`make faults` writes this page. Each round is a job of its own, with three calls a task, "
        "on a real Ray with the sandbox; in its middle one thing is killed with SIGKILL, or goes "
        "wrong. What is counted comes from outside: the results file, and the sandbox's list of "
        "what it answered and billed.",
        "",
        "*Paid twice* are calls that were under way when the fault struck: their answers are lost, "
        "and they were sent again (`--on-unknown resend`; in the storm by the retries of a call). "
        "*Untold* are those of them that the job does not say. *Uncharged* is what the sandbox "
        "billed beyond what the job's budget was charged. *Recovery* is from the fault to the next "
        "32 tasks' ends; where all of Ray dies it includes the new start, and where something goes "
        "wrong for a while (12 s locked, 5 s full, 150 s of outage) that while. Points such as "
        "`after-grant` are places in the code where the next process that comes by is killed "
        "(cluster/fault_points.py), in the order of one call. `-submitted` and `node-lost` are "
        "jobs by `agentcloud submit`, the latter with six workers; `replica` is a job on the "
        "embedded model, by vLLM.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for name in FAULTS:
        if (found := figures.get(name)) is None:
            continue
        recovery = "-"
        if found["recover_s_max"] is not None:
            recovery = f"{found['recover_s_median']:.1f} / {found['recover_s_max']:.1f} s"
        cells = (
            name, found["tasks"], found["rounds"], found["tasks_lost"], found["duplicated"],
            found["tasks_failed"], found["paid_twice"], found["paid_twice_untold"],
            f"${found['usd_over_budget']}", f"${found['usd_uncharged']}", recovery, found["date"],
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    found_in = [place for each in figures.get("canary", {}).values() for place in each]
    told = "nowhere" if not found_in else f"in {', '.join(found_in)}"
    lines += [
        "",
        f"Afterwards the API key was found {told}: looked at were all files of the user's folder "
        "and of Ray's (logs, results, job records, databases), all exported metrics, and all that "
        "`ray list --detail` lists.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run, print, write; 1 where anything was lost, doubled, or paid in silence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--more", action="store_true", help="add to the rounds that are kept")
    parser.add_argument("--only", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - FAULTS.keys():
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are: {', '.join(FAULTS)}")
    measure(names, given.rounds, given.tasks, more=given.more)
    figures = kept()
    text = page(figures)
    PAGE.write_text(text)
    print(text)
    clean = all(figures[name]["clean"] for name in names)
    return 0 if clean and not any(figures["canary"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
