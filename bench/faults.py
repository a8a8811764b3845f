"""`make faults`: every process of a job is killed for real, and between any two of its states.

Each round is a job of its own. What it lost, doubled or paid twice is counted from outside: its
results file, and the sandbox's own list of what it answered and billed. Figures go to
`bench/out/faults.json` and, as tables, to `docs/faults.md`.

    python -m bench.faults                      # all, 10 rounds each
    python -m bench.faults --only worker,ledger --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from tests import postgres
from tests.faults.job_world import POINTS, RunningJob, Verdict, World, job_world

OUT: Final = Path(__file__).parent / "out" / "faults.json"
PAGE: Final = Path(__file__).parents[1] / "docs" / "faults.md"
TASKS: Final = 500
#: Lines after which the fault strikes.
STRIKES_AT: Final = 100
#: A database is locked for so long: longer than whoever waits for it waits, seconds.
LOCKED_S: Final = 12.0
#: Calls that meet each fault of the sandbox.
STORM: Final = {
    "rate_limit": 40,
    "overloaded": 40,
    "stream_error": 20,
    "cut_mid_stream": 20,
    "cut_before_headers": 20,
    "malformed_sse": 20,
}
#: The disk is full for so long, seconds.
FULL_S: Final = 5.0
Fault = Callable[[World, RunningJob], None]


def kill(kind: str) -> Fault:
    """SIGKILL one process of a kind."""
    return lambda _world, job: job.kill(kind)


def kill_driver(_world: World, job: RunningJob) -> None:
    """SIGKILL the command; then `agentcloud resume`."""
    job.kill_driver()
    job.resume()


def kill_ray(world: World, job: RunningJob) -> None:
    """SIGKILL all of Ray and the command; a new head, a new fleet, `agentcloud resume`."""
    world.kill_ray()
    world.start_ray()
    job.resume()


def at(point: str) -> Fault:
    """SIGKILL whoever reaches a point next."""
    return lambda world, _job: world.arm(point)


def lock(world: World, _job: RunningJob) -> None:
    """Another process holds the write locks of both databases."""
    with (
        closing(sqlite3.connect(world.folder / "store.db")) as store,
        closing(sqlite3.connect(world.folder / "store-ledger.db")) as ledger,
    ):
        for each in (store, ledger):
            each.execute("BEGIN IMMEDIATE")
        time.sleep(LOCKED_S)


def fill_disk(world: World, _job: RunningJob) -> None:
    """Not one byte more fits where the databases are, for a while."""
    filler = Path(world.store.removeprefix("sqlite:///")).with_name("filler")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    time.sleep(FULL_S)
    filler.unlink()


def storm(world: World, _job: RunningJob) -> None:
    """Refusals, overload inside streams, cut connections and broken bodies, one after another."""
    for kind, count in STORM.items():
        world.go_wrong(kind, count)


def restart_postgres(world: World, _job: RunningJob) -> None:
    """The database server crashes and starts again."""
    postgres.restart(world.store)


FAULTS: Final[dict[str, Fault]] = {
    "none": lambda _world, _job: None,
    **{kind: kill(kind) for kind in ("worker", "supervisor", "scheduler", "ledger")},
    "driver": kill_driver,
    "all-of-ray": kill_ray,
    **{point: at(point) for point in POINTS},
    "hosted-storm": storm,
    "locked-database": lock,
    "disk-full": fill_disk,
    "postgres-restart": restart_postgres,
}


@contextlib.contextmanager
def small_disk() -> Iterator[str]:
    """URL of a database on a disk of its own, which a file can fill; it takes a mount."""
    folder = tempfile.mkdtemp(prefix="agentcloud-disk-")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", folder], check=True)
    try:
        yield f"sqlite:///{folder}/store.db"
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        Path(folder).rmdir()


#: Faults that want databases of their own.
STORES: Final[dict[str, Callable[[], AbstractContextManager[str]]]] = {
    "disk-full": small_disk,
    "postgres-restart": postgres.postgres,
}


def one_round(world: World, name: str, number: int, tasks: int) -> Verdict:
    """One job with one fault in its middle."""
    # A storm may strike one task many times over.
    options = {"attempts": "10", "extra-attempts": "100"} if name == "hosted-storm" else {}
    with world.job(f"{name}-{number}", tasks, **options) as job:
        job.until(STRIKES_AT)
        struck_s = time.monotonic()
        FAULTS[name](world, job)
        if name != "none":
            job.recovered(since_s=struck_s)
        return job.verdict()


def canary(world: World, key: str) -> list[str]:
    """Files of the user's folder and of Ray that hold the key; there must be none."""
    needle, found = key.encode(), []
    for top in (world.folder, world.head.folder):
        for path in top.rglob("*"):
            # Sockets and pipes have nothing to read.
            if path.is_file() and needle in path.read_bytes():
                found.append(str(path.relative_to(top)))
    return found


def measure(names: Sequence[str], rounds: int, tasks: int) -> dict[str, Any]:
    """Run everything; figures by fault."""
    figures: dict[str, Any] = {}
    leaks: list[str] = []
    plain = [name for name in names if name not in STORES]
    for group in [plain, *([name] for name in names if name in STORES)]:
        if not group:
            continue
        folder = Path(tempfile.mkdtemp(prefix="agentcloud-faults-"))
        own = STORES.get(group[0])
        with own() if own else contextlib.nullcontext(None) as store:
            try:
                with job_world(folder, store=store) as world:
                    for name in group:
                        figures[name] = summary(_rounds(world, name, rounds, tasks))
                    leaks += canary(world, world.head.env["SANDBOX_KEY"])
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return figures | {"canary": leaks}


def _rounds(world: World, name: str, rounds: int, tasks: int) -> list[Verdict]:
    verdicts = []
    for number in range(rounds):
        verdicts.append(one_round(world, name, number, tasks))
        print(f"{name} {number + 1}/{rounds}: {verdicts[-1]}", flush=True)
    return verdicts


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What the rounds of one fault came to."""
    recover = sorted(each.recover_s for each in verdicts if each.recover_s is not None)
    return {
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


def page(figures: dict[str, Any], tasks: int) -> str:
    """The figures as a page of documentation."""
    heads = (
        "fault", "rounds", "lost", "doubled", "failed", "paid twice", "of these untold",
        "over budget", "uncharged", "recovery median / max",
    )  # fmt: skip
    lines = [
        "# Faults, injected for real",
        "",
        f"`make faults` writes this page. Each round is a job of {tasks} tasks of three paid calls "
        "each, on a real Ray with the sandbox; in its middle one thing is killed with SIGKILL, or "
        "goes away. What is counted comes from outside: the results file, and the sandbox's list "
        "of what it answered and billed.",
        "",
        "*Paid twice* are calls that were under way when the fault struck: their answers are lost, "
        "and they were sent again (`--on-unknown resend`; in the storm by the retries of a call). "
        "*Untold* are those of them that the job does not say. *Uncharged* is what the sandbox "
        "billed beyond what the job's budget was charged. *Recovery* is from the fault to the next "
        "tasks' ends; for the driver and all of Ray it includes the new start. Points such as "
        "`after-grant` are places in the code where the next process that comes by is killed "
        "(cluster/fault_points.py), in the order of one call.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for name, found in figures.items():
        if name == "canary":
            continue
        recovery = "-"
        if found["recover_s_max"] is not None:
            recovery = f"{found['recover_s_median']:.1f} / {found['recover_s_max']:.1f} s"
        cells = (
            name, found["rounds"], found["tasks_lost"], found["duplicated"], found["tasks_failed"],
            found["paid_twice"], found["paid_twice_untold"], f"${found['usd_over_budget']}",
            f"${found['usd_uncharged']}", recovery,
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    leaks = figures.get("canary", [])
    told = "no file" if not leaks else ", ".join(leaks)
    lines += ["", f"The API key was found in {told} of the user's folder and of Ray's.", ""]
    return "\n".join(lines)


def main() -> int:
    """Run, print, write; 1 where anything was lost, doubled, or paid in silence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--only", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - FAULTS.keys():
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are: {', '.join(FAULTS)}")
    figures = measure(names, given.rounds, given.tasks)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2))
    text = page(figures, given.tasks)
    PAGE.write_text(text)
    print(text)
    clean = all(found["clean"] for name, found in figures.items() if name != "canary")
    return 0 if clean and not figures["canary"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
