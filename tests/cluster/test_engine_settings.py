"""fleet.yaml's model -> engine settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.engine_settings import EngineSettings, engine_settings
from agentcloud.cluster.errors import ConfigError


def settings(tensor_parallel: int = 1, cores: int = 4, **keys: Any) -> EngineSettings:
    model = LocalModel.model_validate({"path": "/models/m"} | keys)
    return engine_settings("m", model, tensor_parallel=tensor_parallel, cores=range(cores))


def test_on_the_cpu_the_kv_cache_is_explicit_and_threads_are_few() -> None:
    made = settings(kv_cache_gib=0.5, cores=8)
    assert made.args["kv_cache_memory_bytes"] == 512 << 20
    assert made.args["distributed_executor_backend"].endswith(".UniProcExecutor")
    assert settings(2).args["distributed_executor_backend"] == "mp"
    assert made.env["OMP_NUM_THREADS"] == "4"
    assert made.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert made.forks


@given(st.integers(2, 8), st.integers(2, 64))
def test_every_cpu_process_gets_cores_of_its_own(processes: int, cores: int) -> None:
    if cores < processes:
        with pytest.raises(ConfigError, match=r"models\.m"):
            settings(processes, cores)
        return
    binding = settings(processes, cores).env["VLLM_CPU_OMP_THREADS_BIND"]
    runs = [[int(core) for core in run.split(",")] for run in binding.split("|")]
    assert len(runs) == processes
    bound = [core for run in runs for core in run]
    assert len(bound) == len(set(bound))
    assert all(len(run) == cores // processes for run in runs)


def test_on_gpus_one_is_vllms_default_and_several_go_through_ray() -> None:
    alone = settings(gpu="H100-80G")
    assert "distributed_executor_backend" not in alone.args
    assert "enforce_eager" not in alone.args
    assert not alone.forks
    split = settings(4, gpu="H100-80G", pipeline_parallel=2)
    assert split.args["distributed_executor_backend"] == "ray"
    assert split.processes == 8


def test_the_users_arguments_and_environment_win() -> None:
    made = settings(engine_args={"enforce_eager": False}, env={"OMP_NUM_THREADS": "3"})
    assert made.args["enforce_eager"] is False
    assert made.env["OMP_NUM_THREADS"] == "3"


def test_an_embedded_model_is_package_data() -> None:
    model = settings(path="embedded:triage-small").args["model"]
    assert model.endswith("/data/models/triage-small")
