"""`agentcloud tune`: what it makes of two tiers' answers, its bad input, and one real run."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentcloud.agents import logprob
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.cluster.tiers import FleetTiers
from agentcloud.tasks.cascade_file import CascadeSetting, load_cascade, save_cascade
from agentcloud.tasks.demo.tickets import generate
from agentcloud.tasks.results import read_results
from agentcloud.tasks.tune import Trial, matches
from agentcloud.tasks.tune_run import pair_of, read_labelled, trials_of
from tests.tasks.cluster import Head, clean_env, cli
from tests.tasks.conftest import hosted_fleet
from tests.tasks.quick_cli import quick_cli

EXAMPLES = Path(__file__).parents[2] / "examples"


def line(output: Any, *signals: float, usd: str | None = "0.01", **more: Any) -> dict[str, Any]:
    calls = [{"mean_logprob": signal} for signal in signals]
    return {"status": "done", "output": output, "calls": calls, "cost_usd": usd} | more


def failed(kind: str, usd: str = "0.01") -> dict[str, Any]:
    return line(None, usd=usd, status="failed", error_kind=kind, error=f"{kind}: it says")


@pytest.mark.parametrize(
    ("output", "label", "equal"),
    [
        ({"mood": "good", "why": "sun"}, {"mood": "good"}, True),
        ({"mood": "good"}, {"mood": "bad"}, False),
        ({"why": "sun"}, {"mood": "good"}, False),
        ("good", {"mood": "good"}, False),
        ({"mood": "good"}, "good", True),
        ({"mood": 3}, "3", True),  # labels of CSV are text
        ({"mood": 3}, 4, False),
        ("good", "good", True),
        ({"other": "good"}, "good", False),
        (None, "None", True),
    ],
)
def test_what_equals_a_label(output: Any, label: Any, equal: bool) -> None:
    assert matches(output, label, "mood") is equal


def test_result_lines_become_trials() -> None:
    cheap = {
        "sure": line("a", -0.1),
        "two asks": line("b", -0.1, -2.0),
        "no answer": failed("OutputInvalid", usd="0.02"),
        "refused": failed("Refused"),
        "lost": failed("ReplicaLost"),
    } | {str(n): line("a", -0.5) for n in range(20)}
    dear = {id_: line("a", usd="1") for id_ in cheap}
    seen = trials_of(cheap, dear, dict.fromkeys(cheap, "a"), label="x", signal="mean_logprob")
    assert (seen.left_out, seen.why_left_out) == (1, "ReplicaLost: it says")
    one, cent = Decimal(1), Decimal("0.01")
    assert seen.trials[:4] == [
        Trial("sure", -0.1, True, True, cent, one),
        Trial("two asks", -2.0, False, True, cent, one),
        Trial("no answer", None, False, True, Decimal("0.02"), one),
        Trial("refused", math.inf, False, True, cent, one),
    ]
    with pytest.raises(ConfigError, match="what a call of the cheap tier costs is not known"):
        trials_of(
            cheap | {"sure": line("a", -0.1, usd=None)}, dear, dict.fromkeys(cheap, "a"),
            label="x", signal="mean_logprob",
        )  # fmt: skip
    without = {id_: line("a") for id_ in cheap}
    with pytest.raises(ConfigError, match="can be told apart"):
        trials_of(without, dear, dict.fromkeys(cheap, "a"), label="x", signal="mean_logprob")


def test_labels_are_taken_out_before_any_agent_sees_them(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text,mood\n" + "".join(f"t{n},good\n" for n in range(25)))
    path = tmp_path / "sample.jsonl"
    labels = read_labelled(source, "mood").write(path)
    assert "good" not in path.read_text()
    assert labels == {str(n + 1): "good" for n in range(25)}


def test_a_cascade_s_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "cascade.json"
    setting = CascadeSetting(tiers=("small", "large"), logprob=-0.25, tuned={"n": 3})
    save_cascade(path, setting)
    assert load_cascade(path) == setting
    cascade = setting.to_cascade()
    assert (cascade.tiers, cascade.logprob) == (("small", "large"), logprob(-0.25))


@pytest.fixture
def tuning(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that must fail with one line, status 2, and leave nothing."""
    (project / "fleet.yaml").write_text(yaml.safe_dump(hosted_fleet("http://127.0.0.1:9")))
    rows = "".join(f'{{"text": "x", "mood": "{n}"}}\n' for n in range(30))
    (project / "in.jsonl").write_text(rows)

    def go(*args: str) -> str:
        before = sorted(os.listdir(project))
        done = quick_cli(*args, cwd=project, env=clean_env(SANDBOX_KEY="sandbox"))
        shutil.rmtree(project / "__pycache__", ignore_errors=True)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err
        assert sorted(os.listdir(project)) == before
        return done.err

    return go


TUNE = ("tune", "agent.py:answers", "-i", "in.jsonl", "--label")


def test_what_is_wrong_is_one_line_and_leaves_nothing(tuning: Callable[..., str]) -> None:
    assert "in.jsonl: input 1 has no field 'wrong' (text, mood)" in tuning(*TUNE, "wrong")
    assert "--signal agreement" in tuning(*TUNE, "mood")
    assert "its folder is not there" in tuning(*TUNE, "mood", "-o", "no/such/cascade.json")
    run = ("run", "agent.py:answers", "-i", "in.jsonl", "--cascade", "cascade.json")
    assert "cascade.json: cannot read it" in tuning(*run)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("large,huge", "no tier or model 'huge' in this fleet"),
        ("large", "takes two tiers, not large"),
        ("large,claude-haiku-5-5", "claude-haiku-5-5 serves both large and claude-haiku-5-5"),
        ("large,slow", "hosted ones tell no log-probabilities; use --signal agreement"),
    ],
)
def test_wrong_tiers_are_one_line(given: str, says: str) -> None:
    config = parse_fleet(hosted_fleet("http://127.0.0.1:9"))
    fleet = FleetTiers.of(config, load_catalog().with_overrides(config.hosted))
    assert pair_of(fleet, None, logprobs=False) == ("large", "slow")
    with pytest.raises(ConfigError, match=says):
        pair_of(fleet, given, logprobs=True)


def test_too_few_labels_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "x", "mood": "good"}\n' * 3)
    with pytest.raises(ConfigError, match="holds 3 labelled inputs; give 20 or more"):
        read_labelled(path, "mood")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is neither JSON nor YAML"),
        ("[]", "the file: "),
        (
            '{"tiers": ["a", "b"], "logprobs": -1}',
            "logprobs: Extra inputs are not permitted; known",
        ),
        ('{"tiers": ["a", "b"], "logprob": 1}', "logprob: Input should be less than or equal to 0"),
        ('{"tiers": ["a", "a"]}', "name different tiers"),
    ],
)
def test_a_wrong_cascade_file_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "cascade.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_cascade(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_run_takes_a_cascade_for_asks_that_name_no_tier(
    head: Head, project: Path, write_inputs: Callable[..., Path]
) -> None:
    write_inputs({"id": "a", "text": "x"})
    # Asked three times where the agent's own tier would be asked once.
    cascade = {"tiers": ["large", "slow"], "agreement": {"n": 3, "at_least": 0, "temperature": 1}}
    (project / "cascade.json").write_text(json.dumps(cascade))
    ended = head.cli(
        *("run", "agent.py:answers", "-i", "inputs.jsonl", "--address", head.gcs, "--json"),
        *("--cascade", "cascade.json"),
        cwd=project,
    )
    assert ended.status == 0, ended.err
    (result,) = read_results(project / "inputs.results.jsonl")
    assert len(result["calls"]) == 3
    assert {call["agreement"] for call in result["calls"]} <= {1 / 3, 2 / 3, 1.0}


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.timeout(420)
@pytest.mark.slow
def test_a_curve_of_the_demo_s_triage(tmp_path: Path) -> None:
    """The embedded model on the real engine below a hosted tier that answers at random."""
    shutil.copy(EXAMPLES / "triage.py", tmp_path)
    with (tmp_path / "labelled.jsonl").open("w") as file:
        for ticket in generate(60, seed=31, wording="held-out"):
            file.write(json.dumps(ticket.to_dict()) + "\n")
    with SandboxProcess() as sandbox:
        fleet = hosted_fleet(sandbox.url) | {
            "models": {
                "triage-small": {
                    "path": "embedded:triage-small",
                    "context_tokens": 1024,
                    "kv_cache_gib": 0.25,
                    "usd_per_gpu_hour": "0.04",
                }
            }
        }
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet))
        done = cli(
            *("tune", "triage.py:triage", "-i", "labelled.jsonl", "--label", "expected"),
            *("--tiers", "small,large", "--budget", "1usd", "--json"),
            cwd=tmp_path,
            env=clean_env(SANDBOX_KEY="sandbox-tune"),
            timeout_s=360,
        )
    assert done.status == 0, done.err
    report = done.json
    assert report["left_out"] == 0
    points = report["curve"]
    assert len(points) > 10  # nearly every answer has a log-probability of its own
    costs = [Decimal(point["cost_usd"]) for point in points]
    assert costs == sorted(costs)
    assert 0 < costs[0] < costs[-1]
    thresholds = [point["threshold"] for point in points[1:]]
    assert all(threshold < 0 for threshold in thresholds)
    # A model that learned the task below one that guesses: it should be trusted, nearly always.
    cheap, dear = report["cheap_alone"], report["dear_alone"]
    assert cheap["held_out"]["quality"] > 0.5 > dear["held_out"]["quality"]
    assert report["chosen"]["fit"]["rule"] == "cheap"
    low, high = report["chosen"]["held_out"]["quality_95"]
    assert low <= report["chosen"]["held_out"]["quality"] <= high
    setting = load_cascade(tmp_path / "cascade.json")
    assert (setting.tiers, setting.logprob) == (("small", "large"), None)
    assert "expected" not in (Path(report["runs"]) / "sample.jsonl").read_text()
