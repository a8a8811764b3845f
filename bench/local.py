"""What the path to a local replica costs: the SDK's, against the same engine without Ray.

The ceiling is vLLM's own Messages handler in the process that drives it. Every contender has its
own engine of the same settings; their rounds alternate. `python -m bench.local`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.report import NOT_MEASURED, ratios_table, table, write
from tests.tiny_model import make_tiny_model

ROUNDS: Final = 5
#: in flight -> unary calls and streamed calls of a round.
SIZES: Final = {1: (20, 10), 32: (320, 64), 256: (1024, 256)}
BOUNDS: Final = {"vs_ceiling_256": (">=", 0.85), "vs_ray_serve_256": (">=", 1.7)}
PEER_PYTHON: Final = Path(".venv-peers/bin/python")


class Contender:
    """A process that runs rounds when told to, over one or more paths."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.paths: list[str] = self._read()["ready"]

    def round(self, path: str, inflight: int) -> dict[str, float]:
        """One round's figures."""
        calls, stream_calls = SIZES[inflight]
        order = {"path": path, "inflight": inflight, "calls": calls, "stream_calls": stream_calls}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        figures: dict[str, float] = self._read()
        return figures

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=120)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a contender ended with {self._process.wait()}; its log is above")


Figures = dict[str, dict[int, list[dict[str, float]]]]


def run(folder: Path) -> Figures:
    """Measure all paths in alternating rounds."""
    module = [sys.executable, "-m", "bench.local_contender"]
    commands = [[*module, kind, str(folder)] for kind in ("ceiling", "ours")]
    if PEER_PYTHON.exists():
        commands.append([str(PEER_PYTHON), "-m", "bench.local_peer", str(folder)])
    contenders: list[Contender] = []
    try:
        for command in commands:
            contenders.append(Contender(command))  # closed when one fails
        paths = [(contender, path) for contender in contenders for path in contender.paths]
        figures: Figures = {path: {size: [] for size in SIZES} for _, path in paths}
        for contender, path in paths:
            contender.round(path, 32)
            contender.round(path, 256)
        for number in range(ROUNDS):
            # Every round starts with another, so none always follows the same neighbour.
            start = number % len(paths)
            for contender, path in paths[start:] + paths[:start]:
                for size in SIZES:
                    figures[path][size].append(contender.round(path, size))
    finally:
        for contender in contenders:
            contender.close()
    return figures


def ratio(figures: Figures, path: str, base: str, size: int) -> float | str:
    """Median over the rounds of one path's requests a second against another's."""
    if path not in figures or base not in figures:
        return NOT_MEASURED
    return statistics.median(
        mine["rps"] / other["rps"]
        for mine, other in zip(figures[path][size], figures[base][size], strict=True)
    )


def main() -> int:
    """Measure, print, write; 1 when a bound is missed."""
    with tempfile.TemporaryDirectory() as temporary:
        figures = run(make_tiny_model(Path(temporary) / "tiny"))
    rows = [
        (
            path,
            size,
            *(
                statistics.median(each[name] for each in rounds)
                for name in ("rps", "ttft_p50_ms", "ttft_p95_ms")
            ),
        )
        for path, sizes in figures.items()
        for size, rounds in sizes.items()
    ]
    columns = ("path", "in flight", "requests/s", "first token p50 ms", "p95 ms")
    table(f"local: medians of {ROUNDS} alternating rounds, 64 output tokens", columns, rows)
    ratios = {
        "vs_ceiling_256": ratio(figures, "sdk", "ceiling", 256),
        "vs_ray_serve_256": ratio(figures, "sdk", "ray_serve", 256),
        "endpoint_vs_ceiling_256": ratio(figures, "endpoint", "ceiling", 256),
        "kv_events_on_vs_off_32": ratio(figures, "sdk", "sdk_without_kv_events", 32),
        "kv_events_on_vs_off_256": ratio(figures, "sdk", "sdk_without_kv_events", 256),
    }
    path = write("local", figures, ratios, BOUNDS)
    kept = ratios_table(ratios, BOUNDS)
    print(path)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
