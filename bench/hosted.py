"""The cost of our path to a hosted model, against the bare client and LiteLLM's Router.

All call the same sandbox (its own process, no latency), each from a process of its own, in
alternating rounds of one run. `python -m bench.hosted`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from agentcloud.cluster.sandbox.process import SandboxProcess
from bench.report import NOT_MEASURED, ratios_table, table, write

ROUNDS: Final = 7
ROUND_32: Final = {"inflight": 32, "calls": 640}
ROUND_1: Final = {"inflight": 1, "calls": 150}
BOUNDS: Final = {
    "vs_bare_rps_32": (">=", 1.3),
    "added_p50_ms": ("<=", 1.5),
    "cpu_vs_litellm": ("<=", 0.5),
}
PEERS: Final = Path(".venv-peers/bin/python")
#: `ours_in_job` has the ledger on; what that costs is told, and has no bound.
OURS: Final = ("bare", "ours", "ours_unary", "ours_in_job")
SCRIPT: Final = Path(__file__).with_name("hosted_contender.py")


class Contender:
    """A process that sends rounds of calls when told to."""

    def __init__(self, name: str, python: str, url: str) -> None:
        self.name = name
        self.at_32: list[dict[str, float]] = []
        self.at_1: list[dict[str, float]] = []
        self._process = subprocess.Popen(
            [python, str(SCRIPT), name, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read()

    def round(self, size: dict[str, int]) -> dict[str, float]:
        """One round's figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(size) + "\n")
        self._process.stdin.flush()
        figures: dict[str, float] = self._read()
        return figures

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)

    def median(self, rounds: list[dict[str, float]], figure: str) -> float:
        """A figure's median over the rounds."""
        return statistics.median(each[figure] for each in rounds)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        _, errors = self._process.communicate()
        raise RuntimeError(f"{self.name} ended: {errors.strip()[-2000:]}")


def litellm_is_there() -> bool:
    """Whether the peers' environment can run LiteLLM."""
    if not PEERS.exists():
        return False
    found = subprocess.run(
        [PEERS, "-c", "import importlib.metadata as m; m.version('litellm')"],
        capture_output=True,
        check=False,
    )
    return found.returncode == 0


def run(url: str) -> list[Contender]:
    """Measure all contenders in alternating rounds."""
    contenders = [Contender(name, sys.executable, url) for name in OURS]
    if litellm_is_there():
        contenders.append(Contender("litellm", str(PEERS), url))
    for contender in contenders:
        # Connections, caches and imports on first use are nobody's steady state.
        contender.round(ROUND_32)
        contender.round(ROUND_1)
    for number in range(ROUNDS):
        # Every round starts with another, so none always follows the same neighbour.
        start = number % len(contenders)
        for contender in contenders[start:] + contenders[:start]:
            contender.at_32.append(contender.round(ROUND_32))
            contender.at_1.append(contender.round(ROUND_1))
    for contender in contenders:
        contender.close()
    return contenders


def main() -> int:
    """Measure, print, write; 1 when a bound is missed."""
    with SandboxProcess() as sandbox:
        contenders = {each.name: each for each in run(sandbox.url)}
    bare, ours, litellm = contenders["bare"], contenders["ours"], contenders.get("litellm")
    in_job = contenders["ours_in_job"]
    ratios: dict[str, float | str | None] = {
        "vs_bare_rps_32": statistics.median(
            mine["rps"] / other["rps"] for mine, other in zip(ours.at_32, bare.at_32, strict=True)
        ),
        "added_p50_ms": statistics.median(
            mine["p50_ms"] - other["p50_ms"]
            for mine, other in zip(ours.at_1, bare.at_1, strict=True)
        ),
        "in_job_vs_bare_rps_32": statistics.median(
            mine["rps"] / other["rps"] for mine, other in zip(in_job.at_32, bare.at_32, strict=True)
        ),
        "in_job_added_p50_ms": statistics.median(
            mine["p50_ms"] - other["p50_ms"]
            for mine, other in zip(in_job.at_1, bare.at_1, strict=True)
        ),
        "cpu_vs_litellm": NOT_MEASURED
        if litellm is None
        else ours.median(ours.at_32, "cpu_ms") / litellm.median(litellm.at_32, "cpu_ms"),
    }
    rows = [
        (
            name,
            each.median(each.at_32, "rps"),
            each.median(each.at_32, "cpu_ms"),
            each.median(each.at_1, "p50_ms"),
            each.median(each.at_1, "cpu_ms"),
        )
        for name, each in contenders.items()
    ]
    columns = ("", "requests/s at 32", "CPU ms a call at 32", "p50 ms at 1", "CPU ms at 1")
    table(f"hosted: medians of {ROUNDS} alternating rounds", columns, rows)
    figures = {name: {"at_32": each.at_32, "at_1": each.at_1} for name, each in contenders.items()}
    path = write("hosted", figures, ratios, BOUNDS)
    kept = ratios_table(ratios, BOUNDS)
    print(path)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
