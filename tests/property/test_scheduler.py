"""The scheduler's core under random histories, and its choice against exhaustive search."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.budget import Path
from agentcloud.cluster.contracts import Lease, LoadReport, Outcome, Policy, Routing, Settlement
from agentcloud.cluster.policy import Candidate, score_usd
from tests.cluster.scheduling import HAIKU, Bed, failed, fleet, hosted, ok, replica

ACTIONS = (
    ["ask"] * 4
    + ["ok"] * 3
    + ["paid", "deadline", "fail", "limited", "unknown", "cancel", "wait", "down", "up"]
)
CAPS = {("job:a",): Decimal("0.006"), ("job:a", "task:1"): Decimal("0.002")}
PATHS: list[Path] = [(), ("job:b",), *CAPS]
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1000)), max_size=120)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_every_history_decides_once_and_gives_everything_back(
    steps: list[tuple[str, int]],
) -> None:
    limits = {"main": {"limits": {"*": {"requests_per_minute": 30}}}}
    specs = [replica(0), replica(1), hosted(3)]
    bed = Bed(*specs, config=fleet(accounts=limits, fleet_budget_usd="0.01"))
    for path, cap in CAPS.items():
        bed.core.open_budget(path, cap)
    asked: list[str] = []
    open_leases: dict[str, Lease] = {}
    cancelled: set[str] = set()

    def invariants() -> None:
        for call_id, lease in bed.leases.items():
            if call_id not in done:
                open_leases[call_id] = lease
        for spec in specs:
            state = bed.core.endpoint(spec.name)
            assert 0 <= state.inflight <= state.concurrency.maximum
        for budget in bed.core.budgets():
            assert budget.limit_usd is not None
            used_usd = budget.spent_usd + budget.reserved_usd + budget.unknown_usd
            assert used_usd <= budget.limit_usd, budget.scope
        assert bed.core.inflight == len(open_leases)

    done: set[str] = set()

    def finish(pick: int, settle: Callable[[Lease], Settlement]) -> None:
        if open_leases:
            call_id = sorted(open_leases)[pick % len(open_leases)]
            lease = open_leases.pop(call_id)
            done.add(call_id)
            bed.tell(settle(lease))

    for what, pick in steps:
        if what in ("ask", "paid", "deadline"):
            asked.append(f"c{len(asked)}")
            routing = Routing(
                priority=pick % 3,
                deadline_s=float(pick % 7) if what == "deadline" else None,
                policy=list(Policy)[pick % 3],
                budget=PATHS[pick % 4],
            )
            bed.ask(
                asked[-1],
                HAIKU if what == "paid" else "small",
                routing=routing,
                avoid=frozenset({"replica:m:0"} if pick % 5 == 0 else ()),
            )
        elif what == "ok":
            finish(pick, lambda lease: ok(lease, str(lease.reserved_usd / 3)))
        elif what == "fail":
            finish(pick, failed)
        elif what == "limited":
            finish(pick, lambda lease: failed(lease, "rate_limit_error", retry_after_s=2.0))
        elif what == "unknown":
            finish(pick, lambda lease: Settlement(lease.lease_id, Outcome.UNKNOWN))
        elif what == "cancel" and asked:
            call_id = asked[pick % len(asked)]
            if bed.core.cancel(call_id):
                cancelled.add(call_id)
        elif what == "wait":
            bed.wait(pick / 200)
        elif what == "down":
            bed.core.mark_down(f"replica:m:{pick % 2}", "test")
            bed.poll()
        elif what == "up":
            bed.core.register([specs[pick % 2]])
            bed.poll()
        invariants()

    # Then everything works, and all that waits is served.
    bed.core.register(specs)
    bed.poll()
    for _ in range(3000):
        invariants()
        if not open_leases and not bed.core.waiting:
            break
        for _ in range(len(open_leases)):
            finish(0, ok)
        bed.wait(1.0)
    assert bed.core.waiting == 0
    assert bed.core.inflight == 0
    assert sorted(bed.order) == sorted(set(asked) - cancelled), "each once, none lost"
    for spec in specs:
        assert bed.core.endpoint(spec.name).inflight == 0
        assert bed.core.endpoint(spec.name).cls.backlog == 0
    assert bed.core.budgets()[0].reserved_usd == 0


def test_the_choice_is_close_to_exhaustive_search_on_random_states() -> None:
    """Regret: how much worse than the best of all endpoints, on the one scale."""
    regrets = []
    for seed in range(150):
        rng = random.Random(seed)
        specs = [replica(index, slots=16) for index in range(20)]
        bed = Bed(*specs, hosted(50))
        for index in range(rng.randrange(200)):
            lease = bed.ask(f"w{index}")
            if lease is not None and rng.random() < 0.7:
                bed.tell(ok(lease, output_tokens=rng.randrange(20, 90)))
        for spec in specs:
            bed.core.endpoint(spec.name).slowness = rng.uniform(0.8, 1.3)
        bed.core.report_load(
            {
                spec.name: LoadReport(
                    running=bed.core.endpoint(spec.name).inflight,
                    prompt_tokens_queued=rng.randrange(500),
                )
                for spec in specs
            }
        )
        now_s = bed.clock.now()
        best_usd, scores = float("inf"), {}
        for spec in [*specs, hosted(50)]:
            state = bed.core.endpoint(spec.name)
            if not state.admits(now_s):
                continue
            tokens = state.cls.predictor.output_tokens(100)
            total_s = state.estimate(100, tokens, now_s).total_s
            cost_usd = 0.0 if state.cls.is_local else 100 * 1e-7 + tokens * 5e-7
            usd = score_usd(Candidate(spec.name, cost_usd, 0.0, total_s, ""), 1.0 / 3600, 0.0)
            scores[spec.name] = usd
            best_usd = min(best_usd, usd)
        lease = bed.ask("judged")
        assert lease is not None
        regrets.append(scores[lease.endpoint.name] / best_usd - 1.0)
    regrets.sort()
    assert regrets[0] >= -1e-9
    mean = sum(regrets) / len(regrets)
    print(f"regret: mean {mean:.1%}, p95 {regrets[int(len(regrets) * 0.95)]:.1%}")
    assert mean < 0.15
