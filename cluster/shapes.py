"""Pure: a Hugging Face config.json -> the shape that decides a model's memory.

Only architectures whose parameter count is known exactly are accepted; the rest are refused by
name, since a guess here ends in an engine that runs out of memory while it loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from agentcloud.cluster.errors import PlanError, UnplannedModel
from agentcloud.cluster.quantisation import Quantisation, parse_quantisation, what_if

SUPPORTED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_DTYPE_NAMES = {
    "half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32",
    "fp32": "float32", **{name: name for name in _DTYPE_BYTES},
}  # fmt: skip


class Split(StrEnum):
    """How vLLM divides a weight matrix over the ranks of a tensor-parallel group."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"
    KV_HEADS = "kv_heads"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Linear:
    """One weight matrix of a layer (`copies` of it, for experts)."""

    name: str
    inputs: int
    outputs: int
    split: Split
    bias: bool = False
    copies: int = 1

    @property
    def parameters(self) -> int:
        """Its weights and biases, over all copies."""
        return self.copies * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides a decoder's memory.

    Attributes:
        name: what the user called it.
        dtype: of unquantised weights and activations.
        quantisation: how the linear layers' weights are stored; None: in `dtype`.
        context_tokens: the longest context the model was made for.
        dense_layers: of a mixture of experts, the layers that have a plain MLP.
    """

    name: str
    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool
    context_tokens: int
    dtype: str = "bfloat16"
    quantisation: Quantisation | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    dense_layers: frozenset[int] = frozenset()

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one unquantised parameter."""
        return _DTYPE_BYTES[self.dtype]

    @property
    def weights_label(self) -> str:
        """How the weights are stored, for people: `bfloat16`, `int4 (awq, groups of 128)`."""
        return self.quantisation.label if self.quantisation else self.dtype

    @property
    def norm_parameters_per_layer(self) -> int:
        """Norm weights of one layer; every rank holds them whole."""
        return 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)

    def linears(self, layer: int) -> Iterator[Linear]:
        """The weight matrices of one layer, by their names in the checkpoint."""
        attention = f"model.layers.{layer}.self_attn"
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        bias = self.qkv_bias
        yield Linear(f"{attention}.q_proj", self.hidden, queries, Split.OUTPUTS, bias)
        yield Linear(f"{attention}.k_proj", self.hidden, keys, Split.KV_HEADS, bias)
        yield Linear(f"{attention}.v_proj", self.hidden, keys, Split.KV_HEADS, bias)
        yield Linear(f"{attention}.o_proj", queries, self.hidden, Split.INPUTS, self.output_bias)
        mlp = f"model.layers.{layer}.mlp"
        inner, copies, bias = self.intermediate, 1, self.mlp_bias
        if self.experts and layer not in self.dense_layers:
            yield Linear(f"{mlp}.gate", self.hidden, self.experts, Split.WHOLE)
            mlp, inner, copies, bias = (
                f"{mlp}.experts",
                self.expert_intermediate,
                self.experts,
                False,
            )
        for part in ("gate_proj", "up_proj"):
            yield Linear(f"{mlp}.{part}", self.hidden, inner, Split.OUTPUTS, bias, copies)
        yield Linear(f"{mlp}.down_proj", inner, self.hidden, Split.INPUTS, bias, copies)

    def is_quantised(self, linear: Linear) -> bool:
        """Whether the quantisation covers this matrix: routers never, excluded modules not."""
        if self.quantisation is None or linear.split is Split.WHOLE:
            return False
        return not self.quantisation.skips(linear.name)

    @property
    def is_uniform(self) -> bool:
        """Whether every layer takes the same memory."""
        return not self.dense_layers and not (self.quantisation and self.quantisation.skipped)

    @property
    def inner_sizes(self) -> tuple[int, ...]:
        """The MLP widths that a tensor-parallel degree must divide."""
        if not self.experts:
            return (self.intermediate,)
        dense = (self.intermediate,) if self.dense_layers else ()
        return (*dense, self.expert_intermediate)

    @property
    def parameters(self) -> int:
        """Exact number of parameters, tied embeddings counted once."""
        layers = sum(
            sum(linear.parameters for linear in self.linears(index))
            + self.norm_parameters_per_layer
            for index in range(self.layers)
        )
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return layers + embeddings + self.hidden

    def with_dtype(self, dtype: str) -> ModelShape:
        """The same model loaded as `dtype` says.

        Args:
            dtype: `auto` (as the checkpoint has it; float32 loads as bfloat16, as vLLM does), a
                vLLM dtype, or a what-if quantisation: `fp8`, `awq`, `gptq`, `int4`.

        Raises:
            PlanError: vLLM knows no such dtype, or the checkpoint is quantised otherwise.
        """
        if dtype == "auto":
            return replace(self, dtype="bfloat16") if self.dtype == "float32" else self
        if (plain := _DTYPE_NAMES.get(dtype)) is not None:
            # vLLM's --dtype leaves quantised weights as they are.
            return replace(self, dtype=plain)
        quantisation = what_if(dtype)
        if quantisation is None:
            raise PlanError(
                f"unknown dtype {dtype!r}; use auto, bfloat16, float16, float32, fp8, awq or gptq",
                where=self.name,
            )
        if self.quantisation is not None:
            if self.quantisation.bits == quantisation.bits:
                return self
            raise PlanError(
                f"the checkpoint is already {self.quantisation.label}, so it cannot load as "
                f"{dtype}; leave dtype at auto",
                where=self.name,
            )
        base = self if self.dtype != "float32" else replace(self, dtype="bfloat16")
        return replace(base, quantisation=quantisation)


def shape_from_config(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """Read a config.json.

    Args:
        config: its content.
        name: what errors and plans call the model.

    Raises:
        PlanError: an unsupported architecture, a missing key or a senseless value.
    """
    architecture = str(config.get("model_type", ""))
    _refuse_unsupported(config, architecture, name)
    reader = _Reader(config, name)
    hidden = reader.count("hidden_size")
    heads = reader.count("num_attention_heads")
    head_dim = reader.count("head_dim", default=hidden // heads)
    layers = reader.count("num_hidden_layers")
    kv_heads = reader.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise PlanError(
            f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})",
            where=name,
        )
    experts = reader.experts()
    attention_bias = bool(config.get("attention_bias", False))
    intermediate = reader.count("intermediate_size")
    return ModelShape(
        name=name,
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=reader.count("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        context_tokens=reader.context(),
        dtype=reader.dtype(),
        quantisation=parse_quantisation(config, name=name),
        qkv_bias=architecture == "qwen2" or attention_bias,
        output_bias=architecture != "qwen2" and attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=architecture.startswith("qwen3"),
        experts=experts,
        experts_per_token=reader.count("num_experts_per_tok") if experts else 0,
        expert_intermediate=reader.count("moe_intermediate_size", default=intermediate)
        if experts
        else 0,
        dense_layers=reader.dense_layers(layers) if experts else frozenset(),
    )


def _refuse_unsupported(config: Mapping[str, Any], architecture: str, name: str) -> None:
    """Three kinds: attention that is not plain, models of several towers, unknown layouts."""
    if config.get("kv_lora_rank"):
        raise UnplannedModel(
            f"{architecture or 'this model'} uses multi-head latent attention, whose KV cache is "
            "not planned for; set tensor_parallel by hand",
            where=name,
        )
    if "text_config" in config or "vision_config" in config:
        raise UnplannedModel(
            f"{architecture or 'this model'} is multimodal, whose towers are not planned for; set "
            "tensor_parallel by hand",
            where=name,
        )
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if architecture not in SUPPORTED or kinds:
        what = f"layers of kind {', '.join(sorted(kinds))}" if kinds else f"{architecture!r} models"
        raise UnplannedModel(
            f"cannot plan for {what}; known architectures: {', '.join(SUPPORTED)}; set "
            "tensor_parallel by hand",
            where=name,
        )


class _Reader:
    """Typed access to a config.json, with errors that name the key."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._config = config
        self._name = name

    def count(self, key: str, *, default: int | None = None) -> int:
        value = self._config.get(key)
        if value is None:
            value = default
        if value is None:
            raise PlanError(f"config.json lacks {key!r}", where=self._name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise PlanError(
                f"config.json: {key} must be a positive whole number, not {value!r}",
                where=self._name,
            )
        return value

    def experts(self) -> int:
        for key in ("num_local_experts", "num_experts"):
            if self._config.get(key):
                return self.count(key)
        return 0

    def dense_layers(self, layers: int) -> frozenset[int]:
        plain = set(self._config.get("mlp_only_layers") or ())
        step = self.count("decoder_sparse_step", default=1)
        return frozenset(i for i in range(layers) if i in plain or (i + 1) % step)

    def dtype(self) -> str:
        raw = str(self._config.get("dtype") or self._config.get("torch_dtype") or "float32")
        dtype = _DTYPE_NAMES.get(raw.removeprefix("torch."))
        if dtype is None:
            raise PlanError(f"config.json: unknown dtype {raw!r}", where=self._name)
        return dtype

    def context(self) -> int:
        longest = self.count("max_position_embeddings")
        rope = self._config.get("rope_scaling") or self._config.get("rope_parameters") or {}
        if rope.get("rope_type", rope.get("type")) == "yarn":
            original = rope.get("original_max_position_embeddings", longest)
            longest = max(longest, int(original * rope.get("factor", 1)))
        return longest
