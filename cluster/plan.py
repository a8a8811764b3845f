"""Pure: model shape and GPUs -> the smallest tensor and pipeline parallel degree that fits.

Every degree tried is kept with the reason why it does or does not fit; where none does, the error
says what would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentcloud.cluster.degrees import (
    DEFAULT_CONTEXT_TOKENS,
    DegreeVerdict,
    Hardware,
    Verdict,
    Workload,
    block_tokens,
    budget_bytes,
    candidate_degrees,
    judge,
    needed_tokens,
)
from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.memory import kv_bytes_per_token, rank_weight_bytes
from agentcloud.cluster.shapes import ModelShape

__all__ = ["DegreeVerdict", "Hardware", "Plan", "Verdict", "Workload", "make_plan"]

DEFAULT_WORKLOAD = Workload()


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement that fits, and how it was found.

    Attributes:
        parameters: exact count.
        weight_bytes: of the whole model as loaded.
        kv_bytes_per_token: over all layers, on all GPUs together, replicas of heads left out.
        needed_tokens: KV capacity that the workload asks for.
        chosen: the smallest degree that fits.
        tried: every degree tried, in order; `chosen` is among them.
    """

    shape: ModelShape
    hardware: Hardware
    workload: Workload
    context_tokens: int
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    needed_tokens: int
    chosen: DegreeVerdict
    tried: tuple[DegreeVerdict, ...]

    @property
    def budget_bytes(self) -> int:
        """What vLLM may use of one GPU."""
        return budget_bytes(self.hardware)


def make_plan(
    shape: ModelShape,
    hardware: Hardware,
    workload: Workload = DEFAULT_WORKLOAD,
    *,
    dtype: str = "auto",
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
) -> Plan:
    """Find the smallest degree that holds the model and the workload.

    Args:
        shape: the model.
        hardware: what there is to place it on.
        workload: what the replica must hold at once.
        dtype: as vLLM's `--dtype`, or a what-if quantisation (`fp8`, `awq`, `gptq`).
        tensor_parallel: only this degree; None: the smallest that fits.
        pipeline_parallel: only this many stages; None: as few as fit, or one where
            `tensor_parallel` is given.

    Raises:
        PlanError: nothing fits; it says why and what is nearest.
    """
    shape = _loadable(shape.with_dtype(dtype), hardware, dtype)
    context = workload.context_tokens or min(shape.context_tokens, DEFAULT_CONTEXT_TOKENS)
    if context > shape.context_tokens:
        raise PlanError(
            f"a context of {context:,} tokens is beyond the model's {shape.context_tokens:,}",
            where=shape.name,
            nearest=f"context {shape.context_tokens}",
        )
    workload = replace(workload, context_tokens=context)
    if tensor_parallel and not pipeline_parallel:
        pipeline_parallel = 1
    tried: list[DegreeVerdict] = []
    for tp, pp in candidate_degrees(shape, hardware, tensor_parallel, pipeline_parallel):
        if pp > 1 and any(found.verdict is Verdict.FITS for found in tried):
            break
        tried.append(judge(shape, hardware, workload, tp, pp))
    chosen = next((found for found in tried if found.verdict is Verdict.FITS), None)
    if chosen is None:
        raise _refusal(shape, hardware, workload, tensor_parallel, pipeline_parallel, tried)
    return Plan(
        shape=shape,
        hardware=hardware,
        workload=workload,
        context_tokens=context,
        parameters=shape.parameters,
        weight_bytes=rank_weight_bytes(shape, range(shape.layers), 1),
        kv_bytes_per_token=kv_bytes_per_token(shape, fp8_kv=workload.fp8_kv),
        needed_tokens=needed_tokens(workload),
        chosen=chosen,
        tried=tuple(tried),
    )


def _loadable(shape: ModelShape, hardware: Hardware, dtype: str) -> ModelShape:
    """Refuse bfloat16 where there is none, as vLLM does; `auto` falls back to float16."""
    gpu = hardware.gpu
    if shape.dtype != "bfloat16" or gpu.is_cpu or gpu.compute_capability >= 8.0:
        return shape
    if dtype in ("bfloat16", "bf16"):
        raise PlanError(f"{gpu.name} has no bfloat16", where=shape.name, nearest="dtype float16")
    return replace(shape, dtype="float16")


def _refusal(
    shape: ModelShape, hardware: Hardware, workload: Workload, tensor_parallel: int | None,
    pipeline_parallel: int | None, tried: list[DegreeVerdict],
) -> PlanError:  # fmt: skip
    """The reason of the degree that came closest, and what would fit instead."""
    where = f"{hardware.nodes} x {hardware.gpus_per_node} {hardware.gpu.name}"
    closest = max(tried, default=None, key=lambda found: (
        found.verdict is not Verdict.INVALID, found.kv_capacity_tokens, found.gpus,
    ))  # fmt: skip
    if closest is None:
        degree = f"tensor_parallel {tensor_parallel} x pipeline_parallel {pipeline_parallel or 1}"
        why = f"{degree} needs more GPUs than there are or holds less than the weights"
    else:
        why = f"{closest.label}: {closest.reason}"
    options = [
        _first_fit(shape, hardware, workload) if tensor_parallel or pipeline_parallel else None,
        _smaller_ask(closest, workload),
        _eight_bits(shape, hardware, workload),
        _more_gpus(shape, hardware, workload),
    ]
    nearest = "; or ".join(option for option in options if option) or None
    return PlanError(
        f"{shape.name} ({shape.weights_label}) does not fit {where}: {why}",
        nearest=nearest,
    )


def _first_fit(shape: ModelShape, hardware: Hardware, workload: Workload) -> str | None:
    for tp, pp in candidate_degrees(shape, hardware, None, None):
        found = judge(shape, hardware, workload, tp, pp)
        if found.verdict is Verdict.FITS:
            stages = f" pipeline_parallel: {pp}" if pp > 1 else ""
            return f"tensor_parallel: {tp}{stages}"
    return None


def _smaller_ask(closest: DegreeVerdict | None, workload: Workload) -> str | None:
    if closest is None or closest.kv_capacity_tokens == 0:
        return None
    context = workload.context_tokens or DEFAULT_CONTEXT_TOKENS
    requests = closest.kv_capacity_tokens // block_tokens(context)
    if requests:
        return f"{closest.label} with concurrency {requests}"
    return f"{closest.label} with context {closest.kv_capacity_tokens} and concurrency 1"


def _eight_bits(shape: ModelShape, hardware: Hardware, workload: Workload) -> str | None:
    if shape.quantisation is not None or hardware.gpu.is_cpu:
        return None
    fit = _first_fit(shape.with_dtype("fp8"), hardware, workload)
    return f"dtype fp8 with {fit}" if fit else None


def _more_gpus(shape: ModelShape, hardware: Hardware, workload: Workload) -> str | None:
    """More GPUs in a node, as far as nodes are built; else more nodes."""
    if hardware.gpu.is_cpu:
        return None
    for gpus in (2, 4, 8):
        if gpus > hardware.gpus_per_node and (
            fit := _first_fit(shape, replace(hardware, gpus_per_node=gpus), workload)
        ):
            return f"{gpus} GPUs a node with {fit}"
    for nodes in (2, 3, 4, 6, 8):
        if nodes > hardware.nodes and (
            fit := _first_fit(shape, replace(hardware, nodes=nodes), workload)
        ):
            return f"{nodes} nodes with {fit}"
    return None
