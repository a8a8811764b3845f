"""What a fleet.yaml's model is split into, and what is refused, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentcloud.cluster import data
from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.errors import ConfigError, PlanError, UnplannedModel
from agentcloud.cluster.launch import Degrees, degrees_of
from agentcloud.cluster.placement import NodeGpus

ONE_NODE = [NodeGpus("head", 0, 0), NodeGpus("a", 8, 8)]
TWO_NODES = [*ONE_NODE, NodeGpus("b", 8, 8)]


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Writes the config.json of a catalogued model, changed as told, into a folder."""
    shapes = yaml.safe_load((Path(str(data.__file__)).parent / "model_shapes.yaml").read_text())

    def write(name: str, **changed: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(shapes[name] | changed))
        return str(tmp_path)

    return write


def model(path: str, gpu: str | None = "H100-80G", **keys: Any) -> LocalModel:
    return LocalModel(path=path, gpu=gpu, **keys)


def test_auto_takes_the_smallest_degree_with_room(folder: Any) -> None:
    assert degrees_of("m", model(folder("llama-3-70b")), ONE_NODE) == Degrees(4, 1)
    assert degrees_of("m", model(folder("llama-3-8b")), ONE_NODE) == Degrees(1, 1)


def test_auto_settles_for_one_request_where_no_degree_has_more_room(folder: Any) -> None:
    # 65,536 tokens fit beside the weights on one L40S once, not sixteen times.
    small = [NodeGpus("a", 1, 1)]
    asked = model(folder("llama-3.1-8b"), "L40S-48G", context_tokens=65536)
    assert degrees_of("m", asked, small) == Degrees(1, 1)


def test_a_degree_set_by_hand_is_taken_or_refused_but_never_changed(folder: Any) -> None:
    asked = model(folder("llama-3-70b"), tensor_parallel=8)
    assert degrees_of("m", asked, ONE_NODE) == Degrees(8, 1)
    with pytest.raises(PlanError, match=r"TP=1: 131\.4 GiB of weights a GPU"):
        degrees_of("m", model(folder("llama-3-70b"), tensor_parallel=1), ONE_NODE)


def test_stages_are_as_many_as_fleet_yaml_says(folder: Any) -> None:
    path = folder("llama-3.1-405b")
    staged = model(path, pipeline_parallel=2, context_tokens=8192)
    assert degrees_of("m", staged, TWO_NODES) == Degrees(8, 2)
    with pytest.raises(PlanError) as refused:
        degrees_of("m", model(path, context_tokens=8192), TWO_NODES)
    assert "tensor_parallel: 8 pipeline_parallel: 2" in (refused.value.nearest or "")


def test_the_models_own_context_counts_where_none_is_given(folder: Any) -> None:
    path = folder("llama-3.1-8b")
    small = [NodeGpus("a", 1, 1)]
    with pytest.raises(PlanError, match="131,072 asked for"):
        degrees_of("m", model(path, "L4-24G"), small)
    shorter = model(path, "L4-24G", context_tokens=8192)
    assert degrees_of("m", shorter, small) == Degrees(1, 1)


def test_a_model_that_is_not_planned_runs_as_it_is_told(folder: Any) -> None:
    path = folder("llama-3-8b", model_type="gemma9")
    assert degrees_of("m", model(path, tensor_parallel=2), ONE_NODE) == Degrees(2, 1)
    with pytest.raises(UnplannedModel, match="set tensor_parallel by hand"):
        degrees_of("m", model(path), ONE_NODE)


def test_gpus_asked_for_where_there_are_none(folder: Any) -> None:
    with pytest.raises(ConfigError, match="no node of this cluster has a GPU"):
        degrees_of("m", model(folder("llama-3-8b")), ONE_NODE[:1])


def test_on_the_cpu_weights_and_cache_must_fit_its_memory(folder: Any) -> None:
    keys: dict[str, Any] = {"context_tokens": 1024, "max_concurrency": 8}
    path = folder("qwen-2.5-0.5b")
    assert degrees_of("m", model(path, None, tensor_parallel=2, **keys), []) == Degrees(2, 1)
    with pytest.raises(PlanError, match=r"leave no room .* 100000.0 GiB of KV cache"):
        degrees_of("m", model(path, None, kv_cache_gib=100_000, **keys), [])


def test_nodes_that_may_come_are_planned_with_where_bounds_let_them(folder: Any) -> None:
    path = folder("llama-3-70b")
    bounds = {"min": 0, "max": 2}
    assert degrees_of("m", model(path, replicas=bounds), ONE_NODE[:1]) == Degrees(4, 1)
    two_stages: dict[str, Any] = {"tensor_parallel": 2, "pipeline_parallel": 2}
    small = model(path, replicas=bounds, gpus_per_node=2, **two_stages)
    assert degrees_of("m", small, ONE_NODE[:1]) == Degrees(2, 2)
    half_there = [NodeGpus("a", 2, 2)]
    assert degrees_of("m", small, half_there) == Degrees(2, 2)
    with pytest.raises(PlanError, match="needs more GPUs than there are"):
        degrees_of("m", model(path, **two_stages), half_there)
