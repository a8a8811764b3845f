"""The catalogues of GPU kinds and model shapes, and models on disk, as plan.py wants them."""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.memory import Gpu
from agentcloud.cluster.shapes import ModelShape, shape_from_config

_MIB = 1024**2


@cache
def gpu_kinds() -> dict[str, Gpu]:
    """Every GPU kind of the catalogue by name."""
    return {
        name: Gpu(
            name=name,
            memory_bytes=entry["memory_mib"] * _MIB,
            bandwidth_bytes_per_s=entry["bandwidth_gb_s"] * 1e9,
            bf16_flops=entry["bf16_tflops"] * 1e12,
            compute_capability=entry["compute_capability"],
        )
        for name, entry in _data("gpus.yaml").items()
    }


def gpu_kind(name: str) -> Gpu:
    """A GPU kind by name, whatever its case (`H100-80G`).

    Raises:
        PlanError: there is none of that name.
    """
    kinds = gpu_kinds()
    for known, gpu in kinds.items():
        if known.lower() == name.lower():
            return gpu
    raise PlanError(f"no GPU kind {name!r}; {_hint(name, list(kinds))}")


def cpu_share(memory_bytes: int, *, ranks: int = 1) -> Gpu:
    """A machine's memory as vLLM's CPU ranks share it.

    Args:
        memory_bytes: what the machine can spare for one replica.
        ranks: tensor-parallel processes of the replica.
    """
    return Gpu(name="CPU", memory_bytes=memory_bytes // ranks, is_cpu=True)


def model_names() -> list[str]:
    """Names of the models whose shapes are catalogued."""
    return list(_data("model_shapes.yaml"))


def model_shape(model: str) -> ModelShape:
    """A model's shape by catalogue name, model folder, or path of a config.json.

    Raises:
        PlanError: there is no such model, its config.json cannot be read, or it is not supported.
    """
    catalogue = _data("model_shapes.yaml")
    path = Path(model).expanduser()
    if model.lower() in catalogue and not path.exists():
        return shape_from_config(catalogue[model.lower()], name=model.lower())
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        if path.name == "config.json" and path.parent.is_dir():
            raise PlanError("there is no config.json in it; give a model folder",
                            where=str(path.parent))  # fmt: skip
        raise PlanError(
            f"no model {model!r}: neither a folder nor a known name; "
            f"{_hint(model.lower(), list(catalogue))}",
        )
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise PlanError(f"cannot read it ({error.strerror})", where=str(path)) from None
    except ValueError as error:
        raise PlanError(f"is not JSON ({error})", where=str(path)) from None
    if not isinstance(config, dict):
        raise PlanError("holds no object; is it a model's config.json?", where=str(path))
    return shape_from_config(config, name=path.parent.name or model)


@cache
def _data(file: str) -> dict[str, Any]:
    text = resources.files("agentcloud.cluster.data").joinpath(file).read_text()
    data = yaml.safe_load(text)
    assert isinstance(data, dict)
    return data


def _hint(name: str, known: list[str]) -> str:
    longer = [full for full in known if full.lower().startswith(name.lower())]
    close = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(full) for full in close)}?"
    return f"known: {', '.join(known)}"
