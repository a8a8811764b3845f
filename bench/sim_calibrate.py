"""How well the simulated replica follows the real engine: `python -m bench.sim_calibrate`.

Steps of the real engine at several prompt lengths, running counts and contexts are timed; the five
coefficients of `Speed` are fitted to them by least squares of relative errors, none negative. Then
a burst of mixed requests is played on the real engine, and on the simulated replica with the fitted
coefficients, and the two are compared. The bursts are other requests than those fitted to.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot, ticker

from bench import report
from bench.sim_bound import rank
from bench.sim_engine import BUDGET_TOKENS, CONTEXT_TOKENS, MODEL, SEQUENCES, Step, SteppedEngine
from bench.sim_plot import minor
from bench.sim_replica import Replica, Speed
from bench.sim_traces import Arrival

_COEFFICIENTS: Final = ("step_s", "prefill_s", "attend_s", "sequence_s", "read_s")
_PROMPTS: Final = (16, 64, 200, 400, 800, 1600)
_RUNNING: Final = (1, 8, 32, 96)
_CONTEXTS: Final = (16, 256, 1200)
#: Tokens of the prompts that a round of decoding starts with, at most.
_FILLED: Final = 13_000
_ROUNDS: Final = 3
_DECODED: Final = 10
_BURSTS: Final = 2
_BURST: Final = 80
_SWEEPS: Final = 20_000
BOUNDS: Final = {"step_error_p50": ("<=", 0.15), "burst_ttft_p50_error": ("<=", 0.25)}


def measure(engine: SteppedEngine) -> list[Step]:
    """Steps of all kinds, several rounds of each; the first of a round are not counted."""
    for length in _PROMPTS:
        engine.add(length, 4)
    engine.drain()
    steps: list[Step] = []
    for _ in range(_ROUNDS):
        for length in _PROMPTS:
            for beside in (0, 16):
                steps += _prompts(engine, length, beside)
        for context in _CONTEXTS:
            for running in _RUNNING:
                if running * context <= min(_FILLED, engine.kv_tokens // 2):
                    steps += _decoding(engine, context, running)
    return [step for step in steps if step.prompt_tokens or step.running]


def _prompts(engine: SteppedEngine, length: int, beside: int) -> list[Step]:
    for _ in range(beside):
        engine.add(32, 40)
    while beside and engine.step()[0].prompt_tokens:
        pass
    for _ in range(2):
        engine.add(length, 2)
    return engine.drain()[:8]


def _decoding(engine: SteppedEngine, context: int, running: int) -> list[Step]:
    for _ in range(running):
        # Long prompts take many steps, and all are to be still there when the last has begun.
        engine.add(context, _DECODED + 1 + running * context // BUDGET_TOKENS)
    return [step for step in engine.drain() if step.running == running][:_DECODED]


def fit(steps: Sequence[Step]) -> list[float]:
    """The five coefficients: non-negative least squares of relative errors.

    Alike steps are taken together by their median first: a machine shared with others has steps
    that took several times as long for no reason of their own.
    """
    alike: dict[tuple[int, ...], list[Step]] = {}
    for step in steps:
        key = (step.prompt_tokens, step.running, int(step.pairs), step.read_tokens // 500)
        alike.setdefault(key, []).append(step)
    rows = []
    for group in alike.values():
        took_s = statistics.median(step.took_s for step in group)
        mean = np.mean([step.features() for step in group], axis=0)
        rows.append(mean / took_s)
    a = np.array(rows)
    scale = np.maximum(a.max(axis=0), 1e-12)
    a = a / scale
    gram, right = a.T @ a, a.sum(axis=0)
    theta = np.zeros(len(scale))
    for _ in range(_SWEEPS):
        for index in range(len(theta)):
            rest = right[index] - gram[index] @ theta
            theta[index] = max(0.0, theta[index] + rest / max(gram[index, index], 1e-12))
    return [float(each) for each in theta / scale]


def replay(arrivals: Sequence[Arrival], speed: Speed) -> list[tuple[float, float]]:
    """The simulated replica's time to first token and total of each request."""
    replica = Replica("fitted", speed)
    for key, arrival in enumerate(arrivals):
        replica.advance(arrival.at_s)
        replica.add(key, arrival, arrival.at_s)
    while replica.next_s is not None:
        replica.advance(replica.next_s)
    found = [(0.0, 0.0)] * len(arrivals)
    for sequence, end_s in replica.finished:
        assert sequence.first_token_s is not None
        at_s = sequence.arrival.at_s
        found[sequence.key] = (sequence.first_token_s - at_s, end_s - at_s)
    return found


def burst(seed: int, per_s: float) -> list[Arrival]:
    """Short and long prompts, short and long answers, at random times."""
    rng = random.Random(seed)
    at_s, found = 0.0, []
    for _ in range(_BURST):
        prompt = int(min(1600, 16 + rng.lognormvariate(5.3, 1.0)))
        found.append(Arrival(at_s, prompt, rng.randint(4, 96)))
        at_s += rng.expovariate(per_s)
    return found


def main() -> int:
    """Measure, fit, replay, print, write, plot; 1 when a bound is missed."""
    engine = SteppedEngine()
    steps = measure(engine)
    theta = fit(steps)
    step_s, prefill_s, attend_s, sequence_s, read_s = theta
    speed = Speed(
        step_s,
        prefill_s,
        attend_s,
        sequence_s,
        read_s,
        engine.kv_tokens,
        SEQUENCES,
        BUDGET_TOKENS,
    )
    modelled = [float(np.dot(step.features(), theta)) for step in steps]
    errors = sorted(
        abs(guess - step.took_s) / step.took_s for guess, step in zip(modelled, steps, strict=True)
    )
    # A rate at which it is busy, and does not queue up without end.
    each = burst(0, 1.0)
    work_s = sum(speed.alone_s(one.prompt_tokens) for one in each) / len(each)
    per_s = 0.5 / (work_s + speed.sequence_s * 50)
    pairs = []
    for seed in range(1, _BURSTS + 1):
        arrivals = burst(seed, per_s)
        pairs += list(zip(engine.play(arrivals), replay(arrivals, speed), strict=True))
    figures = {
        "model": MODEL,
        "coefficients": dict(zip(_COEFFICIENTS, theta, strict=True)),
        "kv_tokens": engine.kv_tokens,
        "steps": len(steps),
        "step_error_p90": errors[rank(len(errors), 0.9)],
        "r2": _r2([step.took_s for step in steps], modelled),
        "bursts_requests_per_s": per_s,
        "bursts": _compare(pairs),
    }
    ratios: dict[str, Any] = {
        "step_error_p50": errors[rank(len(errors), 0.5)],
        "burst_ttft_p50_error": figures["bursts"]["ttft_p50"]["error"],
        "burst_total_p50_error": figures["bursts"]["total_p50"]["error"],
    }
    _show(steps, modelled, figures)
    path = report.write("calibrate", figures, ratios, BOUNDS)
    _plot(steps, modelled, pairs, path.with_suffix(".png"))
    kept = report.ratios_table(ratios, BOUNDS)
    print(path, path.with_suffix(".png"), sep="\n")
    return 0 if kept else 1


def _r2(true: Sequence[float], guessed: Sequence[float]) -> float:
    mean = statistics.fmean(true)
    left = sum((one - other) ** 2 for one, other in zip(true, guessed, strict=True))
    return 1.0 - left / sum((one - mean) ** 2 for one in true)


def _compare(pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> dict[str, Any]:
    found = {}
    for index, name in enumerate(("ttft", "total")):
        for percent in (50, 95):
            real, simulated = (
                sorted(pair[side][index] for pair in pairs)[rank(len(pairs), percent / 100)]
                for side in (0, 1)
            )
            found[f"{name}_p{percent}"] = {
                "real_s": real,
                "simulated_s": simulated,
                "error": abs(simulated - real) / real,
            }
    return found


def _show(steps: Sequence[Step], modelled: Sequence[float], figures: dict[str, Any]) -> None:
    report.table(
        f"coefficients of {MODEL} on this CPU (R2 {figures['r2']:.3f})",
        ("coefficient", "microseconds"),
        [(name, value * 1e6) for name, value in figures["coefficients"].items()],
    )
    kinds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for step, guess in zip(steps, modelled, strict=True):
        prompt = "no prompt" if not step.prompt_tokens else f"prompt {step.prompt_tokens}"
        kinds.setdefault((prompt, f"{step.running} running"), []).append((step.took_s, guess))
    rows = []
    for (prompt, running), found in sorted(kinds.items()):
        if len(found) >= _ROUNDS:
            real = statistics.median(one for one, _ in found)
            guess = statistics.median(two for _, two in found)
            rows.append((f"{prompt}, {running}", len(found), real * 1e3, guess * 1e3))
    report.table("steps, medians", ("step", "n", "measured ms", "modelled ms"), rows)
    report.table(
        f"{_BURSTS} bursts of {_BURST}, context to {CONTEXT_TOKENS}",
        ("figure", "real engine s", "simulated s", "error"),
        [(name, *each.values()) for name, each in figures["bursts"].items()],
    )


def _plot(
    steps: Sequence[Step],
    modelled: Sequence[float],
    pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    path: Path,
) -> None:
    sketch, (left, right) = pyplot.subplots(1, 2, figsize=(13.0, 6.0), layout="constrained")
    for title, wanted, colour in (
        ("steps with prompts", True, "#d62728"),
        ("decoding only", False, "#1f77b4"),
    ):
        chosen = [i for i, step in enumerate(steps) if bool(step.prompt_tokens) is wanted]
        x, y = [modelled[i] * 1e3 for i in chosen], [steps[i].took_s * 1e3 for i in chosen]
        left.plot(x, y, ".", color=colour, alpha=0.5, label=title)
    left.set(title="one step", xlabel="modelled, ms", ylabel="measured, ms")
    for index, title, colour in ((0, "time to first token", "#d62728"), (1, "total", "#1f77b4")):
        x, y = [pair[1][index] for pair in pairs], [pair[0][index] for pair in pairs]
        right.plot(x, y, ".", color=colour, alpha=0.6, label=title)
    right.set(title="requests of the bursts", xlabel="simulated, s", ylabel="real engine, s")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_yscale("log")
        low, high = (
            max(axis.get_xlim()[0], axis.get_ylim()[0]),
            min(axis.get_xlim()[1], axis.get_ylim()[1]),
        )
        axis.plot([low, high], [low, high], "k:", label="equal")
        for line in (axis.xaxis, axis.yaxis):
            line.set_major_formatter("{x:g}")
            line.set_minor_formatter(ticker.FuncFormatter(minor))
        axis.grid(visible=True, which="both", alpha=0.25)
        axis.legend()
    sketch.savefig(path, dpi=110)
    pyplot.close(sketch)


if __name__ == "__main__":
    sys.exit(main())
