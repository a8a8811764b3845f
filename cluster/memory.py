"""Pure: bytes on each GPU of a model split by vLLM's tensor and pipeline parallelism.

The rules are vLLM 0.32's own: `QKVParallelLinear` and `ParallelLMHead` for what divides and what is
replicated, `get_pp_indices` for layers per stage, `GPUWorker.determine_available_memory` for what
the KV cache gets. Weights are exact. What else a GPU holds is an allowance, on the high side:

- the forward pass and the sampler's buffers, of which the larger counts. Of the sampler about 41
  bytes a logit: vLLM logs 1.26 GiB for Llama 3 8B with 256 sequences at TP=1 and TP=2 alike.
- CUDA context and libraries, 1.8 GiB alone and 3.6 GiB with NCCL and all-reduce buffers (the
  non-torch memory of those runs, vllm-project/vllm pull request 10511);
- CUDA graphs, 1 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentcloud.cluster.shapes import Linear, ModelShape, Split

GIB = 1024**3
#: vLLM's `CacheConfig.gpu_memory_utilization`.
DEFAULT_UTILIZATION = 0.92
#: vLLM's `CacheConfig.DEFAULT_BLOCK_SIZE`.
BLOCK_TOKENS = 16
_VOCAB_PADDING = 64
_SAMPLER_BYTES_PER_LOGIT = 41
_ACTIVATION_BYTES = 2
_RUNTIME_BYTES = int(1.8 * GIB)
_RUNTIME_PARALLEL_BYTES = int(3.6 * GIB)
_CUDA_GRAPH_BYTES = GIB


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU (or, with `is_cpu`, one rank's share of a machine's memory).

    Attributes:
        memory_bytes: total, as CUDA reports it.
        bandwidth_bytes_per_s: of its memory.
        bf16_flops: dense, a second; 0: unknown.
        compute_capability: NVIDIA's; below 8.0 there is no bfloat16.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float = 0.0
    bf16_flops: float = 0.0
    compute_capability: float = 9.0
    is_cpu: bool = False

    @property
    def default_batched_tokens(self) -> int:
        """The `max_num_batched_tokens` that vLLM takes for a server on it."""
        if self.is_cpu:
            return 4096
        if self.memory_bytes >= 160 * GIB:
            return 16384
        return 8192 if self.memory_bytes >= 70 * GIB and "A100" not in self.name else 2048


def stage_layers(layers: int, stages: int) -> tuple[range, ...]:
    """The layers of each pipeline stage, as vLLM's `get_pp_indices` deals them."""
    counts = [layers // stages] * stages
    for extra in range(2, layers % stages + 2):
        counts[-extra] += 1
    ends = [sum(counts[: index + 1]) for index in range(stages)]
    return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))


def split_problem(shape: ModelShape, tensor_parallel: int) -> str | None:
    """Why vLLM would refuse a tensor-parallel degree for this model; None: it would not."""
    tp = tensor_parallel
    if shape.heads % tp:
        return f"{shape.heads} attention heads are not divisible by {tp}"
    if tp > shape.kv_heads and tp % shape.kv_heads:
        return f"{tp} is no multiple of the {shape.kv_heads} KV heads, so they cannot be replicated"
    if tp < shape.kv_heads and shape.kv_heads % tp:
        return f"{shape.kv_heads} KV heads are not divisible by {tp}"
    for inner in shape.inner_sizes:
        if inner % tp:
            return f"the MLP's width {inner} is not divisible by {tp}"
    if _padded_vocab(shape) % tp:
        return f"the vocabulary (padded to {_padded_vocab(shape)}) is not divisible by {tp}"
    if shape.quantisation is not None:
        for linear in shape.linears(shape.layers - 1):
            if shape.is_quantised(linear):
                inputs, outputs = _slice(shape, linear, tp)
                if problem := shape.quantisation.misfit(inputs, outputs):
                    return f"{linear.name.rsplit('.', 1)[-1]}: {problem}"
    return None


def rank_weight_bytes(shape: ModelShape, layers: range, tensor_parallel: int) -> int:
    """Weights on one rank of the stage that holds `layers`.

    The first stage has the embeddings, the last the final norm and the output head; where those
    two share their weights and their stage, they are held once.
    """
    width = shape.dtype_bytes
    if shape.is_uniform:
        total = len(layers) * _layer_bytes(shape, 0, tensor_parallel)
    else:
        total = sum(_layer_bytes(shape, layer, tensor_parallel) for layer in layers)
    table = _padded_vocab(shape) // tensor_parallel * shape.hidden * width
    first, last = layers.start == 0, layers.stop == shape.layers
    if first:
        total += table
    if last:
        total += shape.hidden * width
        if not (shape.tied_embeddings and first):
            total += table
    return total


def kv_bytes_per_token(
    shape: ModelShape, *, layers: int | None = None, tensor_parallel: int = 1, fp8_kv: bool = False
) -> int:
    """KV cache of one token on one rank; by default of the whole model on one GPU."""
    heads = max(1, shape.kv_heads // tensor_parallel)
    width = 1 if fp8_kv else shape.dtype_bytes
    return 2 * (shape.layers if layers is None else layers) * heads * shape.head_dim * width


def allowance_bytes(
    shape: ModelShape,
    gpu: Gpu,
    *,
    tensor_parallel: int,
    ranks: int,
    sequences: int,
    batched_tokens: int,
) -> int:
    """What a rank needs beside weights and KV cache; see the module's text.

    Args:
        shape: the model.
        gpu: where the rank runs.
        tensor_parallel: ranks that share each matrix.
        ranks: GPUs of the replica.
        sequences: vLLM's `max_num_seqs`.
        batched_tokens: vLLM's `max_num_batched_tokens`.
    """
    inner = 3 * max(shape.inner_sizes) // tensor_parallel
    if shape.experts:
        inner = shape.experts_per_token * (inner + shape.hidden)
    forward = batched_tokens * _ACTIVATION_BYTES * (4 * shape.hidden + inner)
    sampler = min(sequences, batched_tokens) * _padded_vocab(shape) * _SAMPLER_BYTES_PER_LOGIT
    working = max(forward, sampler)
    if gpu.is_cpu:
        return working
    return working + _CUDA_GRAPH_BYTES + (_RUNTIME_PARALLEL_BYTES if ranks > 1 else _RUNTIME_BYTES)


def _layer_bytes(shape: ModelShape, layer: int, tensor_parallel: int) -> int:
    width = shape.dtype_bytes
    total = shape.norm_parameters_per_layer * width
    for linear in shape.linears(layer):
        inputs, outputs = _slice(shape, linear, tensor_parallel)
        if shape.quantisation is not None and shape.is_quantised(linear):
            matrix = shape.quantisation.matrix_bytes(inputs, outputs)
        else:
            matrix = inputs * outputs * width
        total += linear.copies * (matrix + (outputs * width if linear.bias else 0))
    return total


def _slice(shape: ModelShape, linear: Linear, tensor_parallel: int) -> tuple[int, int]:
    """Inputs and outputs of a matrix on one rank; KV heads are replicated when too few."""
    if linear.split is Split.WHOLE:
        return linear.inputs, linear.outputs
    if linear.split is Split.INPUTS:
        return linear.inputs // tensor_parallel, linear.outputs
    if linear.split is Split.KV_HEADS:
        return linear.inputs, max(1, shape.kv_heads // tensor_parallel) * shape.head_dim
    return linear.inputs, linear.outputs // tensor_parallel


def _padded_vocab(shape: ModelShape) -> int:
    return -(-shape.vocab // _VOCAB_PADDING) * _VOCAB_PADDING
