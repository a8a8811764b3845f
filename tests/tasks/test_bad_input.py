"""What a user can get wrong: one clear line, exit status 2, and nothing half-done.

What goes wrong inside a task (an agent that raises, an output that never validates, a prompt beyond
the context) is in test_run.py, on a cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from agentcloud.tasks.doctor import check_ports
from tests.tasks.cluster import clean_env, free_ports
from tests.tasks.conftest import hosted_fleet
from tests.tasks.quick_cli import quick_cli, server

Run = Callable[..., tuple[int, str]]
GOOD = hosted_fleet("http://127.0.0.1:9")


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `agentcloud ...` as a user does; it must leave nothing behind."""
    for name in list(os.environ):
        if name.startswith(("RAY_", "ANTHROPIC_", "SANDBOX_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(project)
    (project / "fleet.yaml").write_text(yaml.safe_dump(GOOD))
    (project / "in.jsonl").write_text('{"id": "a", "text": "x"}\n')

    server()

    def go(*args: str) -> tuple[int, str]:
        children = set(psutil.Process().children(recursive=True))
        files = sorted(os.listdir(project))
        done = quick_cli(*args, cwd=project, env=dict(os.environ))
        assert done.out == ""
        assert "Traceback" not in done.err
        assert set(psutil.Process().children(recursive=True)) <= children
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(project / "__pycache__")
        assert sorted(os.listdir(project)) == files
        return done.status, done.err

    return go


RUN = ("run", "agent.py:no_calls", "-i", "in.jsonl", "-o", "out.jsonl")


def set_fleet(change: Callable[[dict[str, Any]], object]) -> None:
    fleet = json.loads(json.dumps(GOOD))
    change(fleet)
    Path("fleet.yaml").write_text(yaml.safe_dump(fleet))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: f.update(polcy="cost"),
            "error: fleet.yaml: unknown key 'polcy'; did you mean 'policy'?",
        ),
        (
            lambda f: f["hosted"]["claude-haiku-5-5"].update(tir="x"),
            "error: fleet.yaml: unknown key 'hosted.claude-haiku-5-5.tir'; did you mean 'tier'?",
        ),
        (lambda f: f.update(policy="cheap"), "error: fleet.yaml: policy: input should be"),
        (
            lambda f: f.update(fleet_budget_usd=-1),
            "error: fleet.yaml: fleet_budget_usd: input should be greater than or equal to 0",
        ),
        (
            lambda f: f["hosted"]["claude-haiku-5-5"].update(account="none"),
            "error: fleet.yaml: hosted.claude-haiku-5-5.account: no account 'none' "
            "(known: sandbox)",
        ),
        (
            lambda f: f["hosted"].clear(),
            "error: fleet.yaml: no models: name at least one under `models:` or `hosted:`",
        ),
    ],
)
def test_a_wrong_key_or_value_in_the_fleet_file(
    run: Run, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    set_fleet(change)
    status, err = run(*RUN)
    assert status == 2
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "error: fleet.yaml: cannot read it (No such file or directory)"),
        ("models: [", "error: fleet.yaml:1: is not YAML"),
        ("text", "error: fleet.yaml: holds no keys"),
    ],
)
def test_a_fleet_file_that_is_none(run: Run, content: str | None, said: str) -> None:
    if content is None:
        Path("fleet.yaml").unlink()
    else:
        Path("fleet.yaml").write_text(content)
    status, err = run(*RUN)
    assert status == 2
    assert err.startswith(said)


def test_lines_that_are_not_json_stop_the_job_before_it_starts(run: Run) -> None:
    Path("in.jsonl").write_text('{"id": "a"}\n{"id": \n')
    status, err = run(*RUN)
    assert status == 2
    assert err == (
        "error: in.jsonl:2: not JSON (Expecting value at column 7); mend it, or leave it out: "
        "--on-bad-input skip\n"
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--budget", "0"), "error: --budget: a budget of zero allows no call"),
        (("--task-budget", "0usd"), "error: --task-budget: a budget of zero allows no call"),
        (("--budget", "lots"), "error: --budget: 'lots' is no amount of money; write 2usd"),
    ],
)
def test_a_budget_that_is_none(run: Run, args: tuple[str, str], said: str) -> None:
    status, err = run(*RUN, *args)
    assert status == 2
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("none.py:x", "error: none.py: cannot read it (No such file or directory)"),
        ("agent.py:no_cals", "error: agent.py: no agent 'no_cals'; did you mean 'no_calls'?"),
        ("agent.py", "error: agent.py: names no agent; write path/to/file.py:name"),
        ("broken.py:x", "error: broken.py:1: cannot be imported: SyntaxError"),
        ("raises.py:x", "error: raises.py:2: cannot be imported: ZeroDivisionError"),
    ],
)
def test_an_agent_that_cannot_be_loaded(run: Run, target: str, said: str) -> None:
    Path("broken.py").write_text("def x(:\n")
    Path("raises.py").write_text("\n1 / 0\n")
    status, err = run("run", target, "-i", "in.jsonl", "-o", "out.jsonl")
    assert status == 2
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_an_output_that_is_something_else_is_left_alone(run: Run) -> None:
    Path("out.jsonl").write_text("my notes\n")
    status, err = run(*RUN)
    assert status == 2
    assert "exists and is no results file; choose another --output" in err
    assert Path("out.jsonl").read_text() == "my notes\n"


@pytest.mark.parametrize("command", ["run", "up", "down", "endpoints", "list"])
def test_a_cluster_that_is_not_there(project: Path, command: str) -> None:
    (project / "fleet.yaml").write_text(yaml.safe_dump(GOOD))
    (project / "in.jsonl").write_text('{"id": "a"}\n')
    (port,) = free_ports(1)
    args = RUN if command == "run" else (command,)
    ended = quick_cli(*args, "--address", f"127.0.0.1:{port}", cwd=project, env=clean_env())
    assert ended.status == 2
    assert ended.out == ""
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"error: 127.0.0.1:{port}: no Ray cluster is there")
    assert "Traceback" not in ended.err
    assert not (project / "out.jsonl").exists()


@pytest.mark.parametrize("command", [("submit", *RUN[1:4]), ("list",), ("status", "j1")])
def test_a_dashboard_that_is_not_there(run: Run, command: tuple[str, ...]) -> None:
    (port,) = free_ports(1)
    status, err = run(*command, "--address", f"http://127.0.0.1:{port}")
    assert status == 2
    assert err.startswith(f"error: http://127.0.0.1:{port}: no Ray cluster is there")


def test_a_port_in_use_is_named_by_doctor() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check = check_ports({port: "Ray's dashboard (--dashboard-port)"})
    assert check.verdict == "warn"
    assert check.saw == f"{port} is in use: Ray's dashboard (--dashboard-port)"
    assert check.remedy is not None


@pytest.mark.ray
@pytest.mark.parametrize(
    ("models", "env", "said"),
    [
        ({}, {}, "fleet.yaml: accounts.sandbox: no API key; export SANDBOX_KEY="),
        (
            {"m": {"path": "no/such/folder"}},
            {"SANDBOX_KEY": "sandbox"},
            "fleet.yaml: models.m.path: no model folder no/such/folder",
        ),
        (
            {"m": {"path": "half"}},
            {"SANDBOX_KEY": "sandbox"},
            "fleet.yaml: models.m.path: half holds no weights",
        ),
    ],
)
def test_a_missing_key_or_model_is_found_before_anything_runs(
    project: Path, models: dict[str, Any], env: dict[str, str], said: str
) -> None:
    (project / "half").mkdir()
    (project / "half" / "config.json").write_text("{}")
    (project / "fleet.yaml").write_text(yaml.safe_dump(GOOD | {"models": models}))
    (project / "in.jsonl").write_text('{"id": "a"}\n')
    ended = quick_cli(*RUN, cwd=project, env=clean_env(**env))
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith(f"error: {said}")
    assert "Traceback" not in ended.err
    assert not (project / "out.jsonl").exists()
