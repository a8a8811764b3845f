"""Prefix index: finds the longest prefix held, keeps to its size, believes what it is told."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import (
    EndpointKind,
    LeaseRequest,
    LoadReport,
    Outcome,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.pool import EndpointClass
from agentcloud.cluster.prefill import PrefillModel, PrefillQueue, pairs_of
from agentcloud.cluster.prefix import Change, PrefixIndex
from agentcloud.cluster.scheduler import SchedulerCore
from tests.cluster.scheduling import fleet, replica

# Chains over a tree of two branches at each level, named by their path.
PATHS = st.lists(st.booleans(), min_size=1, max_size=12)


def chain(path: list[bool]) -> tuple[int, ...]:
    number, found = 1, []
    for turn in path:
        number = number * 2 + turn
        found.append(number)
    return tuple(found)


def members(count: int, kv_tokens: int | None = None) -> list[EndpointState]:
    specs = [replica(index, kv_tokens=kv_tokens) for index in range(count)]
    cls = EndpointClass(specs[0], None)
    return [EndpointState(spec, cls) for spec in specs]


@given(st.lists(st.tuples(st.integers(0, 3), PATHS), max_size=40), PATHS)
def test_the_longest_prefix_is_found(sent: list[tuple[int, list[bool]]], asked: list[bool]) -> None:
    states, index = members(4), PrefixIndex()
    held: list[set[int]] = [set() for _ in states]
    for which, path in sent:
        index.insert(states[which], chain(path), 0.0)
        held[which].update(chain(path))
    prefix = chain(asked)

    def depth(chunks: set[int]) -> int:
        return next((at for at, chunk in enumerate(prefix) if chunk not in chunks), len(prefix))

    depths = [depth(chunks) for chunks in held]
    assert [PrefixIndex.depth(state, prefix) for state in states] == depths
    longest, holders = index.longest(prefix)
    assert longest == max(depths)
    assert bool(holders) == (longest > 0)
    assert all(depths[states.index(state)] == longest for state in holders)


@given(st.lists(PATHS, min_size=1, max_size=60))
def test_it_remembers_no_more_than_the_cache_can_hold(sent: list[list[bool]]) -> None:
    [state], index = members(1, kv_tokens=256 * 8), PrefixIndex()
    for path in sent:
        index.insert(state, chain(path), 0.0)
        assert len(state.holding.hashes) <= 8
        # What is kept of a chain is its front: the rest is useless without it.
        depth = PrefixIndex.depth(state, chain(path))
        assert depth >= min(len(path), 8)
    index.drop(state)
    assert index.longest(chain(sent[-1])) == (0, [])


@given(st.lists(st.tuples(PATHS, st.booleans()), max_size=40))
def test_what_an_endpoint_tells_is_believed(told: list[tuple[list[bool], bool]]) -> None:
    [state], index = members(1, kv_tokens=256), PrefixIndex()
    truth: set[int] = set()
    for path, stored in told:
        chunks = chain(path)
        change = Change(chunks if stored else (), () if stored else chunks[-1:])
        index.told(state, change, 0.0)
        truth = truth | set(chunks) if stored else truth - set(chunks[-1:])
        assert set(state.holding.hashes) == truth


@given(st.lists(st.tuples(PATHS, PATHS), min_size=1, max_size=20))
def test_telling_all_anew_replaces_what_was_known(
    told: list[tuple[list[bool], list[bool]]],
) -> None:
    [state], index = members(1, kv_tokens=256 * 100), PrefixIndex()
    for stored, sent in told:
        index.insert(state, chain(sent), 0.0)
        index.told(state, Change(chain(stored), None), 0.0)
        assert set(state.holding.hashes) == set(chain(stored))
        assert state.holding.told
    index.told(state, None, 0.0)
    assert not state.holding.told, "it is back to what it was sent"


@given(st.lists(st.tuples(st.floats(0, 400), PATHS), min_size=1, max_size=30))
def test_a_hosted_endpoint_forgets_what_was_not_used_for_five_minutes(
    sent: list[tuple[float, list[bool]]],
) -> None:
    spec = replace(replica(0), kind=EndpointKind.HOSTED, usd_per_hour=None)
    state, now_s = EndpointState(spec, EndpointClass(spec, None)), 0.0
    used_s: dict[int, float] = {}
    for passed_s, path in sent:
        now_s += passed_s
        prefix = chain(path)
        request = LeaseRequest("c", "m", 2000, 1, prefix=prefix, prefix_tokens=(9,) * len(prefix))
        live = {chunk for chunk, at_s in used_s.items() if now_s - at_s < 300.0}
        held = next((at for at, chunk in enumerate(prefix) if chunk not in live), len(prefix))
        assert state.held_chunks(request, now_s) == held
        state.cls.prefixes.insert(state, prefix, now_s)
        used_s |= dict.fromkeys(prefix, now_s)


@given(
    st.floats(1e-3, 1.0),
    st.floats(1e-6, 1e-3),
    st.floats(0, 1e-8),
    st.integers(0, 10_000),
)
def test_a_law_of_prefill_is_found_again(
    base_s: float, token_s: float, pair_s: float, seed: int
) -> None:
    rng, model = random.Random(seed), PrefillModel()
    for _ in range(600):
        tokens = float(rng.randrange(1, 20_000))
        pairs = pairs_of(tokens, float(rng.randrange(0, 20_000)))
        ttft_s = base_s + token_s * tokens + pair_s * pairs
        model.learn(tokens, pairs, float(rng.randrange(1, 64)), ttft_s)
    errors = []
    for _ in range(100):
        tokens = float(rng.randrange(1, 20_000))
        pairs = pairs_of(tokens, 0.0)
        truth_s = base_s + token_s * tokens + pair_s * pairs
        errors.append(abs(model.at(tokens, pairs, 8.0) - truth_s) / truth_s)
    assert sorted(errors)[50] < 0.1


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), max_size=30))
def test_a_queue_only_drains(passing: list[tuple[float, float]]) -> None:
    model, queue, now_s = PrefillModel(), PrefillQueue(), 0.0
    for _ in range(10):
        model.learn(1000.0, 500_000.0, 1.0, 0.1)
    for tokens, passed_s in passing:
        queue.add(tokens, pairs_of(tokens, 0.0), now_s)
        before = queue.tokens
        now_s += passed_s
        queue.drain(model, now_s)
        assert 0.0 <= queue.tokens <= before


def test_a_call_goes_where_its_prefix_is_until_that_costs_more_than_it_saves() -> None:
    clock = FakeClock(0.0)
    core = SchedulerCore(fleet(), load_catalog(), clock, random.Random(1))
    core.register([replica(index, slots=50) for index in range(3)])
    count = 0

    def ask(prefix: tuple[int, ...], tokens: int, *, ends: bool = True) -> str:
        nonlocal count
        count += 1
        request = LeaseRequest(
            str(count),
            "m",
            tokens,
            16,
            prefix=prefix,
            prefix_tokens=tuple(100 * (at + 1) for at in range(len(prefix))),
            stream=True,
        )
        core.submit(request)
        [granted] = core.poll()
        assert isinstance(granted, Granted)
        lease = granted.lease
        if ends:
            clock.advance(5.0)
            seconds = tokens * 1e-3
            usage = TokenUsage(tokens, 0, 0, 16)
            timings = Timings(0.0, seconds, 0.1, seconds + 0.1)
            core.settle(Settlement(lease.lease_id, Outcome.OK, usage, timings=timings))
        return lease.endpoint.name

    for number in range(30):
        ask((), 100 + 50 * (number % 20))
    prefix = tuple(range(1, 11))
    home = ask(prefix, 1050)
    assert [ask((*prefix, 100 + number), 1150) for number in range(5)] == [home] * 5
    # Others hold a call's slot each; the prompts queued at home outweigh what its cache saves.
    core.report_load({home: LoadReport(running=40, prompt_tokens_queued=50_000)})
    assert ask((*prefix, 999), 1150) != home
