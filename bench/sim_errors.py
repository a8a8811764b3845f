"""How wrong the scheduler's predictions were, beside a moving average's, on half of a run.

Both are asked at the moment of sending, and know the calls that have ended by then. The moving
average is the endpoint's own, of times to first token and of times per token, a new call weighing
a twentieth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.sim_bound import rank
from bench.sim_world import HOSTED, Done

#: Time to first token and time per token, seconds, as predicted; None: no data yet.
Predicted = tuple[float | None, float | None]

_WEIGHT: Final = 0.05


def prediction_errors(
    results: Sequence[Done], predicted: Mapping[int, Predicted]
) -> dict[str, dict[str, Any]]:
    """Relative errors of the second half of the sends, for replicas, the hosted model and all."""
    averages = _moving_averages(results)
    sent = sorted(results, key=lambda done: done.sent_s)[len(results) // 2 :]
    kinds: dict[str, list[Done]] = {
        "replicas": [done for done in sent if done.endpoint != HOSTED],
        "hosted": [done for done in sent if done.endpoint == HOSTED],
        "all": sent,
    }
    found = {}
    for kind, calls in kinds.items():
        if not calls:
            continue
        row: dict[str, Any] = {"calls": len(calls)}
        for index, name in enumerate(("ttft", "per_token")):
            for who, guesses in (("ours", predicted), ("average", averages)):
                errors = sorted(
                    abs(guess - true) / true
                    for done in calls
                    if (guess := guesses[done.key][index]) is not None
                    and (true := _measured(done)[index]) is not None
                )
                for percent in (50, 90):
                    key = f"{name}_{who}_p{percent}"
                    row[key] = errors[rank(len(errors), percent / 100)] if errors else None
        found[kind] = row
    return found


def _measured(done: Done) -> Predicted:
    tokens = done.usage.output_tokens - 1
    return done.first_s - done.sent_s, (done.end_s - done.first_s) / tokens if tokens else None


def _moving_averages(results: Sequence[Done]) -> dict[int, Predicted]:
    """What the endpoint's moving averages said when each call was sent."""
    known: dict[str, Predicted] = {}
    said: dict[int, Predicted] = {}
    ended = sorted(results, key=lambda done: done.end_s)
    next_ended = 0
    for done in sorted(results, key=lambda done: done.sent_s):
        while next_ended < len(ended) and ended[next_ended].end_s <= done.sent_s:
            call = ended[next_ended]
            before = known.get(call.endpoint, (None, None))
            ttft_s, per_token_s = _measured(call)
            known[call.endpoint] = (_blend(before[0], ttft_s), _blend(before[1], per_token_s))
            next_ended += 1
        said[done.key] = known.get(done.endpoint, (None, None))
    return said


def _blend(before: float | None, new: float | None) -> float | None:
    if before is None or new is None:
        return new if before is None else before
    return before + _WEIGHT * (new - before)
