"""`agentcloud plan` as its user types it."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.plan_cli import plan_command

app = typer.Typer()
app.command("plan")(plan_command)


def test_the_table_says_why_each_degree_does_or_does_not_fit() -> None:
    done = CliRunner().invoke(
        app, ["llama-3-70b", "--gpu", "H100-80G"], env={"COLUMNS": "140"}, catch_exceptions=False
    )
    assert done.exit_code == 0
    rows = {line.split()[1]: line for line in done.output.splitlines() if line.startswith("│")}
    assert "too big: 131.4 GiB of weights a GPU, 72.8 GiB usable" in rows["TP=1"]
    assert "too little KV: holds the weights with almost no KV" in rows["TP=2"]
    assert "fits: KV for" in rows["TP=4"]
    assert "141.1 GB as bfloat16" in done.output
    assert "smallest that fits: TP=4, 4 GPUs a replica" in done.output


def test_json_is_the_same_plan_for_programs() -> None:
    arguments = [
        "llama-3.1-405b", "--gpu", "h100-80g", "--nodes", "2", "--context", "32768",
        "--concurrency", "8", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    plan = json.loads(done.output)
    chosen = plan["chosen"]
    assert (chosen["tensor_parallel"], chosen["pipeline_parallel"], chosen["nodes"]) == (8, 2, 2)
    assert plan["needed_kv_tokens"] == 8 * 32768 <= chosen["kv_capacity_tokens"]
    assert chosen in plan["tried"]
    assert plan["weight_bytes"] == pytest.approx(811.7e9, rel=1e-3)


def test_a_wider_kv_cache_or_a_fixed_degree_can_be_asked_for() -> None:
    def capacity(*more: str) -> int:
        arguments = ["llama-3-8b", "--gpu", "L40S-48G", "--concurrency", "1", "--json", *more]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        return int(json.loads(done.output)["chosen"]["kv_capacity_tokens"])

    assert capacity("--fp8-kv") == pytest.approx(2 * capacity(), rel=0.01)
    assert capacity("--tensor-parallel", "2") > 2 * capacity()
    assert capacity("--utilization", "0.7") < capacity()


def test_what_does_not_fit_is_a_plan_error_for_the_command_line_to_print() -> None:
    done = CliRunner().invoke(app, ["llama-3.1-405b", "--gpu", "H100-80G"])
    assert isinstance(done.exception, PlanError)
    assert "dtype fp8 with tensor_parallel: 8" in str(done.exception)


def test_help_shows_examples() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"})
    assert "agentcloud plan llama-3-70b --gpu H100-80G" in done.output
