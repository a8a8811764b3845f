"""Pure: what one tensor x pipeline degree comes to, and which degrees are worth trying.

Degrees are tried from the cheapest to run: fewest nodes, then the shallowest pipeline, then the
fewest GPUs. Tensor parallelism stays inside a node, where GPUs are joined by NVLink or PCIe;
pipeline stages, which exchange little, are what crosses nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from agentcloud.cluster.memory import (
    BLOCK_TOKENS,
    DEFAULT_UTILIZATION,
    GIB,
    Gpu,
    allowance_bytes,
    kv_bytes_per_token,
    rank_weight_bytes,
    split_problem,
    stage_layers,
)
from agentcloud.cluster.shapes import ModelShape

DEFAULT_CONTEXT_TOKENS = 8192


class Verdict(StrEnum):
    """What became of a degree."""

    FITS = "fits"
    LITTLE_KV = "too little KV"
    TOO_BIG = "too big"
    INVALID = "impossible"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What there is to place the model on.

    Attributes:
        utilization: share of a GPU's memory that vLLM may use (`gpu_memory_utilization`).
        kv_bytes_per_gpu: a fixed KV cache a rank (on CPU: `VLLM_CPU_KVCACHE_SPACE`); None: all
            that the weights leave.
    """

    gpu: Gpu
    gpus_per_node: int = 8
    nodes: int = 1
    utilization: float = DEFAULT_UTILIZATION
    kv_bytes_per_gpu: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """What the replica must hold at once.

    Attributes:
        context_tokens: prompt and answer of one request; None: the model's own limit, at most
            8,192.
        concurrency: requests of that length whose KV cache must fit at once.
        sequences: vLLM's `max_num_seqs`, which sizes the sampler's buffers.
        batched_tokens: vLLM's `max_num_batched_tokens`; None: vLLM's default for the GPU.
        fp8_kv: the KV cache is kept at 8 bits.
    """

    context_tokens: int | None = None
    concurrency: int = 16
    sequences: int = 256
    batched_tokens: int | None = None
    fp8_kv: bool = False


@dataclass(frozen=True, slots=True)
class DegreeVerdict:
    """One degree and what it comes to; bytes are of a GPU of the stage with the least room.

    Attributes:
        nodes: nodes it takes.
        reason: why it does or does not fit, in words.
        kv_capacity_tokens: tokens that the whole replica's KV cache holds.
    """

    tensor_parallel: int
    pipeline_parallel: int
    nodes: int
    verdict: Verdict
    reason: str
    weight_bytes: int = 0
    allowance_bytes: int = 0
    kv_bytes: int = 0
    kv_capacity_tokens: int = 0

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def label(self) -> str:
        """`TP=4` or `TP=8 PP=2`."""
        pipeline = f" PP={self.pipeline_parallel}" if self.pipeline_parallel > 1 else ""
        return f"TP={self.tensor_parallel}{pipeline}"


def budget_bytes(hardware: Hardware) -> int:
    """What vLLM may use of one GPU."""
    return math.floor(hardware.gpu.memory_bytes * hardware.utilization)


def judge(
    shape: ModelShape, hardware: Hardware, workload: Workload, tensor_parallel: int, stages: int
) -> DegreeVerdict:
    """Say what one degree comes to."""
    tp, context = tensor_parallel, workload.context_tokens or DEFAULT_CONTEXT_TOKENS
    per_node = max(1, hardware.gpus_per_node // tp)
    verdict = DegreeVerdict(tp, stages, -(-stages // per_node), Verdict.INVALID, "")
    if problem := split_problem(shape, tp):
        return replace(verdict, reason=problem)
    if stages > shape.layers:
        return replace(verdict, reason=f"{shape.layers} layers cannot make {stages} stages")
    gpu, budget = hardware.gpu, budget_bytes(hardware)
    batched = workload.batched_tokens or gpu.default_batched_tokens
    allowance = allowance_bytes(
        shape, gpu, tensor_parallel=tp, ranks=tp * stages, sequences=workload.sequences,
        batched_tokens=min(batched, workload.sequences * context),
    )  # fmt: skip
    # The stage with the least room decides: first one that is over, then the fewest tokens.
    tightest = min(
        (
            _stage_room(shape, hardware, workload, layers, tp, budget - allowance)
            for layers in stage_layers(shape.layers, stages)
        ),
        key=lambda stage: (stage.spare_bytes >= 0, stage.kv_tokens, stage.spare_bytes),
    )
    weights, capacity = tightest.weight_bytes, tightest.kv_tokens
    verdict = replace(verdict, weight_bytes=weights, allowance_bytes=allowance)
    # Four cases: the weights do not go in; they do but nothing is left; some KV; enough KV.
    size, limit = f"{weights / GIB:.1f} GiB of weights a GPU", f"{budget / GIB:.1f} GiB usable"
    if weights > budget:
        return replace(verdict, verdict=Verdict.TOO_BIG, reason=f"{size}, {limit}")
    if tightest.spare_bytes < 0:
        asked = f" and {tightest.kv_bytes / GIB:.1f} GiB of KV cache" if tightest.kv_bytes else ""
        reason = f"{allowance / GIB:.1f} GiB of activations and CUDA{asked}, {limit}"
        return replace(
            verdict, verdict=Verdict.TOO_BIG, reason=f"{size} leave no room for {reason}"
        )
    verdict = replace(verdict, kv_bytes=tightest.kv_bytes, kv_capacity_tokens=capacity)
    requests = capacity // block_tokens(context)
    if capacity < needed_tokens(workload):
        some = "almost no KV" if capacity < 2 * context else f"KV for {requests} requests only"
        asked = f"{capacity:,} tokens, {needed_tokens(workload):,} asked for"
        return replace(
            verdict, verdict=Verdict.LITTLE_KV, reason=f"holds the weights with {some}: {asked}"
        )
    reason = f"KV for {capacity:,} tokens, {requests} requests of {context:,}"
    return replace(verdict, verdict=Verdict.FITS, reason=reason)


@dataclass(frozen=True, slots=True)
class _StageRoom:
    """One rank of a pipeline stage; `spare_bytes` is negative where it holds too much."""

    weight_bytes: int
    kv_bytes: int
    kv_tokens: int
    spare_bytes: int


def _stage_room(
    shape: ModelShape, hardware: Hardware, workload: Workload, layers: range, tp: int, usable: int
) -> _StageRoom:
    weights = rank_weight_bytes(shape, layers, tp)
    room = usable - weights
    fixed = hardware.kv_bytes_per_gpu
    kv_bytes = max(0, room) if fixed is None else fixed
    block = BLOCK_TOKENS * kv_bytes_per_token(
        shape, layers=len(layers), tensor_parallel=tp, fp8_kv=workload.fp8_kv
    )
    # One block is vLLM's null block and holds nothing.
    tokens = max(0, kv_bytes // block - 1) * BLOCK_TOKENS
    return _StageRoom(weights, kv_bytes, tokens, room if fixed is None else room - fixed)


def candidate_degrees(
    shape: ModelShape, hardware: Hardware, tensor_parallel: int | None, pipeline: int | None
) -> Iterator[tuple[int, int]]:
    """Degrees worth trying, cheapest to run first.

    Pipelines whose GPUs together could not even hold the weights are left out, and so are those
    whose tensor degree is impossible, which the list has already said.
    """
    per_node = hardware.gpus_per_node
    widths = [tensor_parallel] if tensor_parallel else list(range(1, per_node + 1))
    if pipeline in (None, 1):
        yield from ((tp, 1) for tp in widths if tp <= per_node)
    weights = rank_weight_bytes(shape, range(shape.layers), 1)
    budget = budget_bytes(hardware)
    pipelines = []
    for tp in widths:
        if tp > per_node or split_problem(shape, tp):
            continue
        deepest = min(shape.layers, per_node // tp * hardware.nodes)
        for pp in [pipeline] if pipeline else range(2, deepest + 1):
            if 1 < pp <= deepest and tp * pp * budget >= weights:
                pipelines.append((-(-pp // (per_node // tp)), pp, tp))
    yield from ((tp, pp) for _, pp, tp in sorted(pipelines))


def needed_tokens(workload: Workload) -> int:
    """KV capacity that the workload asks for."""
    return workload.concurrency * block_tokens(workload.context_tokens or DEFAULT_CONTEXT_TOKENS)


def block_tokens(tokens: int) -> int:
    """Tokens rounded up to whole KV blocks."""
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
