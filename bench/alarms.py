"""Alarms: false alarms on steady traffic, and how soon what goes wrong is noticed.

Simulated traffic of the tests (`tests/cluster/traffic.py`), more of it: `python -m bench.alarms`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from agentcloud.cluster.alarm import Measure, SeriesKey
from agentcloud.cluster.alarms import Alarms, Settings
from tests.cluster.traffic import ENDPOINT, KIND, SHAPES, Harm, Shape, Traffic

#: Windows of a series before something goes wrong, and after which it counts as missed.
WARM, PATIENCE = 70, 120
HARMS: dict[str, tuple[Measure, Harm]] = {
    "TTFT x1.5": (Measure.TTFT, Harm(ttft=1.5)),
    "TTFT x2": (Measure.TTFT, Harm(ttft=2.0)),
    "tokens/s /1.5": (Measure.SPEED, Harm(token=1.5)),
    "cost +20%": (Measure.COST, Harm(cost=1.2)),
    "errors to 8%": (Measure.ERRORS, Harm(errors=0.08)),
    "invalid 5% to 20%": (Measure.INVALID, Harm(invalid=0.2)),
}


def false_alarms(shape: Shape, seeds: range, windows: int) -> tuple[int, Counter[str]]:
    """Windows looked at, and alarms by measure."""
    seen, raised = 0, Counter[str]()
    for seed in seeds:
        traffic = Traffic(shape, seed)
        traffic.windows(windows)
        seen += traffic.alarms.windows
        for alarm in [*traffic.alarms.recent, *traffic.alarms.active]:
            raised[alarm.key.measure] += 1
    return seen, raised


def delay(shape: Shape, measure: Measure, harm: Harm, seed: int) -> int | None:
    """Windows of the series from the change to the alarm; None: missed."""
    traffic = Traffic(shape, seed)
    key = SeriesKey(ENDPOINT, KIND, measure)
    traffic.run(lambda alarms: alarms.windows_of(key) >= WARM)
    before = traffic.alarms.windows_of(key)

    def is_raised(alarms: Alarms) -> bool:
        return any(alarm.key == key and alarm.raised_s > began_s for alarm in alarms.active)

    began_s = traffic.now_s
    traffic.run(
        lambda alarms: is_raised(alarms) or alarms.windows_of(key) - before >= PATIENCE, harm
    )
    if not is_raised(traffic.alarms):
        return None
    return traffic.alarms.windows_of(key) - before


def cost_us() -> float:
    """CPU of one call, microseconds."""
    alarms, calls = Alarms(Settings()), 200_000
    began_s = time.process_time()
    for index in range(calls):
        alarms.called(
            *(f"e{index % 8}", "k", index / 500),
            failed=False,
            ttft_s=0.1 + index % 7,
            token_s=0.01,
            running=index % 50,
            prompt_tokens=100,
        )
    return (time.process_time() - began_s) / calls * 1e6


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=3000, help="of each shape and seed")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    print(f"one call: {cost_us():.1f} us of CPU")
    print("| steady traffic | windows | false alarms | in 1,000 windows | of |")
    print("|---|---|---|---|---|")
    total, alarms = 0, 0
    for name, shape in SHAPES.items():
        seen, raised = false_alarms(shape, range(1, 1 + args.seeds), args.windows)
        total, alarms = total + seen, alarms + raised.total()
        of = ", ".join(f"{measure} {count}" for measure, count in raised.items()) or "-"
        rate = 1000 * raised.total() / seen
        print(f"| {name} | {seen:,} | {raised.total()} | {rate:.2f} | {of} |", flush=True)
    print(f"| all | {total:,} | {alarms} | {1000 * alarms / total:.2f} | |")
    print("\nwindows to the alarm, median / slowest of 10 seeds (missed)")
    print("| in | " + " | ".join(HARMS) + " |")
    print("|---|" + "---|" * len(HARMS))
    for name, shape in SHAPES.items():
        cells = []
        for measure, harm in HARMS.values():
            found = [delay(shape, measure, harm, 100 + seed) for seed in range(10)]
            hits = sorted(each for each in found if each is not None)
            missed = f" ({10 - len(hits)})" if len(hits) < 10 else ""
            cells.append(f"{hits[len(hits) // 2]} / {hits[-1]}{missed}" if hits else "all missed")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
