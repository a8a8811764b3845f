"""The simulator: every request answered once, memory never over its size, bad traces refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.contracts import Policy, TokenUsage
from bench import simulate
from bench.sim_bound import alone, bound_s
from bench.sim_errors import prediction_errors
from bench.sim_policies import OTHERS
from bench.sim_replica import H100_8B, Replica, Speed
from bench.sim_run import OURS, Job, run
from bench.sim_traces import BLOCK_TOKENS, Arrival, TraceError, read_trace
from bench.sim_world import Done

REQUESTS = 300
#: Small, so that prompts take several steps, memory runs out and sequences are put back.
SMALL = Speed(0.01, 1e-4, 1e-8, 1e-4, 1e-7, kv_tokens=4096, max_sequences=8, budget_tokens=512)


def generated(seed: int = 5) -> list[Arrival]:
    """Conversations that grow turn by turn, so that later prompts share blocks with earlier."""
    rng = random.Random(seed)
    talks = [[rng.randrange(1 << 30) for _ in range(rng.randint(1, 8))] for _ in range(40)]
    at_s, found = 0.0, []
    for _ in range(REQUESTS):
        talk = rng.choice(talks)
        prompt = len(talk) * BLOCK_TOKENS - rng.randrange(BLOCK_TOKENS)
        found.append(Arrival(at_s, prompt, rng.randint(1, 400), tuple(talk)))
        if len(talk) < 40:
            talk.append(rng.randrange(1 << 30))
        at_s += rng.expovariate(2.0)
    return found


def written(arrivals: Sequence[Arrival], path: Path) -> Path:
    """Write a trace as Azure or Mooncake publish theirs."""
    if path.suffix == ".csv":
        began = datetime(2023, 11, 16, 18, 15, 46)
        rows = [
            f"{began + timedelta(seconds=each.at_s):%Y-%m-%d %H:%M:%S.%f}0,"
            f"{each.prompt_tokens},{each.output_tokens}"
            for each in arrivals
        ]
        rows.insert(0, "TIMESTAMP,ContextTokens,GeneratedTokens")
    else:
        rows = [
            json.dumps(
                {
                    "timestamp": round(each.at_s * 1000),
                    "input_length": each.prompt_tokens,
                    "output_length": each.output_tokens,
                    "hash_ids": each.blocks,
                }
            )
            for each in arrivals
        ]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(params=[".csv", ".jsonl"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The generated trace in either format."""
    return written(generated(), tmp_path / f"generated{request.param}")


def test_both_formats_are_read_as_they_were_written(trace: Path) -> None:
    read, true = read_trace(trace), generated()
    assert [each.prompt_tokens for each in read] == [each.prompt_tokens for each in true]
    assert [each.output_tokens for each in read] == [each.output_tokens for each in true]
    assert [each.at_s for each in read] == pytest.approx([each.at_s for each in true], abs=1e-3)
    assert all(bool(each.blocks) is (trace.suffix == ".jsonl") for each in read)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.0,x,3\n", ":2: "),
        ("a.csv", "a,b\n1,2\n", ":2: not a row of Azure's format"),
        ("a.jsonl", '{"timestamp": 0, "input_length": 5}\n', ":1: not a row of Mooncake's format"),
        ("a.jsonl", "nonsense\n", ":1: not a row of Mooncake's format"),
        ("a.jsonl", "", "holds no requests"),
        ("a.txt", "", "a trace is a .csv (Azure's) or a .jsonl (Mooncake's)"),
    ],
)
def test_a_bad_trace_is_told_in_one_line(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert simulate.main(["--trace", str(path)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_no_traces_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTCLOUD_TRACES", str(tmp_path))
    assert simulate.main([]) == 2
    told = capsys.readouterr().err
    assert "set AGENTCLOUD_TRACES" in told
    assert told.count("\n") == 1


requests = st.lists(
    st.tuples(
        st.floats(0.0, 3.0),
        st.integers(1, 3000),
        st.integers(1, 60),
        st.lists(st.integers(0, 3), max_size=6),
    ),
    min_size=1,
    max_size=25,
)


@given(requests)
@settings(max_examples=60, deadline=None)
def test_a_replica_answers_everyone_within_its_memory(
    drawn: list[tuple[float, int, int, list[int]]],
) -> None:
    arrivals = sorted(
        (
            Arrival(
                at_s,
                prompt,
                output,
                # A block's id stands for all before it too.
                tuple(hash((*blocks[:end],)) for end in range(1, len(blocks) + 1))[
                    : -(-prompt // BLOCK_TOKENS)
                ],
            )
            for at_s, prompt, output, blocks in drawn
        ),
        key=lambda each: each.at_s,
    )
    replica = Replica("one", SMALL)

    def within_memory() -> None:
        assert 0.0 <= replica.kv_used_fraction <= 1.0

    for key, arrival in enumerate(arrivals):
        while replica.next_s is not None and replica.next_s <= arrival.at_s:
            replica.advance(replica.next_s)
            within_memory()
        replica.add(key, arrival, arrival.at_s)
        within_memory()
    while replica.next_s is not None:
        replica.advance(replica.next_s)
        within_memory()
    assert sorted(each.key for each, _ in replica.finished) == list(range(len(arrivals)))
    for sequence, end_s in replica.finished:
        assert sequence.first_token_s is not None
        arrival = sequence.arrival
        assert arrival.at_s < sequence.first_token_s <= end_s
        assert sequence.cached_tokens < arrival.prompt_tokens + arrival.output_tokens
    assert replica.output_tokens >= sum(each.output_tokens for each in arrivals)
    assert 0 <= replica.hit_tokens < max(1, replica.prompt_tokens)
    assert replica.kv_used_fraction == 0.0
    assert replica.requests == 0


@pytest.mark.parametrize("policy", [*OTHERS, OURS])
def test_every_request_is_answered_once_by_every_policy(policy: str, trace: Path) -> None:
    job = Job(trace, 3, 4.0, policy, hosted=True, ours=Policy.BALANCED, usd_per_hour_waited=10.0)
    found = run(job)
    assert found["requests"] == REQUESTS
    assert found["ttft_p50_s"] <= found["ttft_p95_s"] <= found["ttft_p99_s"]
    assert 0.0 <= found["prefix_hit_rate"] < 1.0
    assert (
        found["ttft_p99_s"] >= bound_s(read_trace(trace), H100_8B, 0.99, hosted_usd=0.0)
        or found["hosted_usd"] > 0.0
    )
    assert run(job) == found


def test_with_deadlines_everyone_is_answered_or_told(trace: Path) -> None:
    job = Job(trace, 1, 12.0, OURS, deadline=True)
    found, without = run(job), run(replace(job, deadline=False))
    assert found["requests"] + found["unanswered"] == REQUESTS
    assert found["unanswered"] > 0
    assert without["unanswered"] == 0
    assert 1.0 > found["deadlines_met"] >= without["deadlines_met"]


def test_nobody_beats_ours_at_cost_and_at_time(trace: Path) -> None:
    full = run(Job(trace, 3, None, "least_busy"))["requests_per_s"]
    jobs = simulate.jobs_at(trace, 3, 0.8 * full, None)
    found = [run(job) for job in jobs]
    beaten = [
        (other["label"], mine["label"])
        for other in simulate.others(found)
        for mine in simulate.ours(found)
        if other["usd"] < mine["usd"] and other["ttft_p99_s"] < mine["ttft_p99_s"]
    ]
    assert beaten == []


def test_a_quick_run_is_told_written_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.report.OUT", tmp_path)
    path = written(generated(), tmp_path / "small.jsonl")
    assert simulate.main(["--trace", str(path), "--quick"]) in (0, 1), "bounds may be missed"
    told = capsys.readouterr().out
    assert "small, load 0.8" in told
    assert "ours balanced + hosted" in told
    report = json.loads((tmp_path / "simulate_quick.json").read_text())
    assert {"small.p99_ttft_vs_best_80", "small.vs_bound"} <= report["ratios"].keys()
    assert (tmp_path / "simulate_quick.png").stat().st_size > 10_000


def test_the_bound_takes_prefixes_from_earlier_requests_only() -> None:
    arrivals = [Arrival(0.0, 1024, 1, (1, 2)), Arrival(1.0, 1024, 1, (1, 2))]
    first_s, second_s = alone(arrivals, SMALL)
    assert first_s == SMALL.alone_s(1024)
    assert second_s == SMALL.alone_s(1024, 1023)


def test_errors_of_predictions_are_of_the_second_half_only() -> None:
    usage = TokenUsage(10, 0, 0, 11)
    done = [
        Done(key, "replica:0", at_s, at_s, at_s + 0.5, at_s + 1.5, 0.0, 0, usage)
        for key, at_s in enumerate((0.0, 10.0, 20.0, 30.0))
    ]
    predicted = {0: (9.0, 9.0), 1: (9.0, 9.0), 2: (0.4, 0.1), 3: (0.6, None)}
    row = prediction_errors(done, predicted)["all"]
    assert row["calls"] == 2
    assert row["ttft_ours_p90"] == pytest.approx(0.2)
    assert row["ttft_average_p90"] == pytest.approx(0.0)
    assert row["per_token_ours_p50"] == pytest.approx(0.0)


def test_a_faster_replica_is_faster() -> None:
    slow = replace(H100_8B, prefill_s=2 * H100_8B.prefill_s)
    assert slow.alone_s(5000) > H100_8B.alone_s(5000) > H100_8B.alone_s(5000, 4000)
