"""Limits against the sandbox's own buckets: nothing refused once corrected, little left unused."""

from __future__ import annotations

from typing import Any

import pytest

from agentcloud.cluster.sandbox.settings import RateLimits
from tests.cluster.limit_world import LimitWorld, Traffic

LOOSE: dict[str, Any] = {
    "requests_per_minute": 600_000,
    "input_tokens_per_minute": 600_000_000,
    "output_tokens_per_minute": 600_000_000,
}
CASES = {
    "requests": ({"requests_per_minute": 1200}, 0, Traffic()),
    "input": ({"input_tokens_per_minute": 240_000}, 1, Traffic()),
    "output": ({"output_tokens_per_minute": 60_000}, 2, Traffic()),
    "long answers": (
        {"output_tokens_per_minute": 60_000},
        2,
        Traffic(output_tokens=lambda rng: rng.randrange(100, 900), per_token_s=0.005),
    ),
    "cached prompts": (
        {"input_tokens_per_minute": 600_000},
        1,
        Traffic(input_tokens=lambda _rng: 8000, cached=0.9, per_token_s=0.03),
    ),
}


@pytest.mark.parametrize("burst_s", [60.0, 5.0])
@pytest.mark.parametrize("case", CASES)
def test_no_call_is_refused_after_the_first_correction_and_the_limit_is_used(
    case: str, burst_s: float
) -> None:
    tight, column, traffic = CASES[case]
    limits = RateLimits(**{**LOOSE, **tight}, burst_s=burst_s)
    world = LimitWorld(limits, traffic, configured={**LOOSE, **tight})
    # What was sent before the server had said how small its bursts are, and the debt it left.
    world.run(75.0)
    early = len(world.seen.refused_s)
    since_s = world.clock.now()
    world.run(60.0)
    late = world.seen.refused_s[early:]
    assert late == [], "refused though the limits were known"
    allowed = float(next(iter(tight.values())))
    used = world.seen.used(column, since_s)
    print(f"{case} burst={burst_s}: early 429s {early}, used {used / allowed:.1%}")
    assert used >= 0.95 * allowed
