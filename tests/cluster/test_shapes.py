"""Parameter counts and storage, against published figures and transformers' own models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.memory import kv_bytes_per_token, rank_weight_bytes
from agentcloud.cluster.plan_data import gpu_kind, gpu_kinds, model_names, model_shape
from agentcloud.cluster.shapes import ModelShape, shape_from_config

TINY: dict[str, Any] = {
    "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024,
    "dtype": "bfloat16",
}  # fmt: skip


def tiny(**keys: Any) -> ModelShape:
    return shape_from_config({"model_type": "llama"} | TINY | keys, name="tiny")


def whole(shape: ModelShape) -> int:
    return rank_weight_bytes(shape, range(shape.layers), 1)


@pytest.mark.parametrize(
    ("model", "billions"),
    [  # as the model cards or their safetensors give them
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.6),
        ("llama-3.1-405b", 405.9),
        ("mixtral-8x7b", 46.7),
        ("qwen-2.5-72b", 72.7),
        ("qwen-2.5-7b", 7.62),
        ("qwen-2.5-0.5b", 0.49),
    ],
)
def test_parameters_are_as_published(model: str, billions: float) -> None:
    digits = 2 if billions < 10 else 1
    assert round(model_shape(model).parameters / 1e9, digits) == billions


def test_weights_of_llama_70b_are_141_gb_at_bf16() -> None:
    assert whole(model_shape("llama-3-70b")) / 1e9 == pytest.approx(141.1, abs=0.05)


@pytest.mark.parametrize(
    ("model", "kib"), [("llama-3-8b", 128), ("llama-3-70b", 320), ("qwen-2.5-7b", 56)]
)
def test_kv_bytes_of_a_token_are_as_published(model: str, kib: int) -> None:
    assert kv_bytes_per_token(model_shape(model)) == kib * 1024
    assert kv_bytes_per_token(model_shape(model), fp8_kv=True) == kib * 512


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral, wide heads": {"model_type": "mistral", "head_dim": 32},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 48, "mlp_only_layers": [1], "decoder_sparse_step": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_builds_as_many_parameters(variant: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    keys = {"tie_word_embeddings": False} | TINY | VARIANTS[variant]
    config = AutoConfig.for_model(**keys)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert shape_from_config(keys, name=variant).parameters == built


@pytest.mark.parametrize("name", ["llama-3-70b", "mixtral-8x7b", "qwen-2.5-0.5b"])
def test_catalogued_shapes_build_as_many_parameters(name: str) -> None:
    torch = pytest.importorskip("torch")
    import yaml
    from transformers import AutoConfig, AutoModelForCausalLM

    from agentcloud.cluster import data

    text = (Path(str(data.__file__)).parent / "model_shapes.yaml").read_text()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**yaml.safe_load(text)[name]))
    built = sum(parameter.numel() for parameter in model.parameters())
    assert model_shape(name).parameters == built


def test_awq_weights_are_as_large_as_the_published_checkpoint() -> None:
    # Qwen2.5-72B-Instruct-AWQ, its MLP padded to whole groups: 41.6 GB of safetensors.
    shape = replace(model_shape("qwen-2.5-72b"), intermediate=29696).with_dtype("awq")
    assert whole(shape) / 1e9 == pytest.approx(41.6, abs=0.05)


META_FP8 = {  # as in Llama-3.1-405B-Instruct-FP8: attention and the outer layers stay bf16
    "quant_method": "fbgemm_fp8",
    "modules_to_not_convert": [
        "lm_head",
        *(f"model.layers.{i}.self_attn.{p}_proj" for i in range(126) for p in "qkvo"),
        *(f"model.layers.{i}.mlp.{p}_proj" for i in (0, 125) for p in ("gate", "up", "down")),
    ],
}


def test_modules_left_unquantised_are_counted_at_full_width() -> None:
    import yaml

    from agentcloud.cluster import data

    text = (Path(str(data.__file__)).parent / "model_shapes.yaml").read_text()
    # The first release had 16 KV heads; vLLM logged 57.75 GiB a GPU for it at TP=8.
    config = yaml.safe_load(text)["llama-3.1-405b"] | {
        "num_key_value_heads": 16, "quantization_config": META_FP8,
    }  # fmt: skip
    shape = shape_from_config(config, name="llama-3.1-405b-fp8")
    per_gpu = rank_weight_bytes(shape, range(126), 8) / 1024**3
    assert per_gpu == pytest.approx(57.75, rel=0.01)


def test_quantisation_of_checkpoints_is_read() -> None:
    def label(**config: Any) -> str:
        return tiny(quantization_config=config).weights_label

    assert label(quant_method="fp8") == "fp8"
    assert label(quant_method="fp8", weight_block_size=[128, 128]) == "fp8 (blocks of 128x128)"
    assert label(quant_method="awq", bits=4, group_size=64) == "int4 (awq, groups of 64)"
    assert label(quant_method="gptq", bits=8, group_size=-1) == "int8 (gptq)"
    group = {"weights": {"type": "int", "num_bits": 4, "group_size": 32}}
    assert (
        label(quant_method="compressed-tensors", config_groups={"group_0": group})
        == "int4 (groups of 32)"
    )
    with pytest.raises(PlanError, match="cannot plan for quantisation 'bitsandbytes'"):
        label(quant_method="bitsandbytes")


def test_patterns_of_ignored_modules_match_as_vllm_matches_them() -> None:
    def quantised(*ignore: str) -> int:
        shape = tiny(quantization_config={"quant_method": "fp8", "ignore": list(ignore)})
        return sum(shape.is_quantised(linear) for linear in shape.linears(0))

    assert quantised() == 7
    assert quantised("lm_head") == 7
    assert quantised("model.layers.0.mlp.down_proj") == 6
    assert quantised("model.layers.1.mlp.down_proj") == 7
    assert quantised("self_attn") == 3
    assert quantised("re:.*mlp.*") == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "gpt2"}, "cannot plan for 'gpt2' models; known architectures: llama"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "multi-head latent attention"),
        ({"model_type": "llava", "vision_config": {}}, "multimodal"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"]}, "linear_attention"),
        ({"hidden_size": None}, "config.json lacks 'hidden_size'"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers must be a positive whole number"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
    ],
)
def test_what_is_not_known_exactly_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        tiny(**keys)


def test_dtype_overrides() -> None:
    assert tiny(dtype="float32").with_dtype("auto").dtype == "bfloat16"
    assert tiny().with_dtype("half").dtype == "float16"
    assert whole(tiny().with_dtype("float32")) == 2 * whole(tiny())
    awq = tiny(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32})
    assert awq.with_dtype("int4") is awq
    with pytest.raises(PlanError, match="already int4"):
        awq.with_dtype("fp8")
    with pytest.raises(PlanError, match="unknown dtype 'fp3'"):
        tiny().with_dtype("fp3")


def test_a_long_rope_reaches_further() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert tiny(rope_scaling=rope).context_tokens == 4096


def test_models_come_from_names_folders_and_files(tmp_path: Path) -> None:
    config = tmp_path / "mine" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"model_type": "llama"} | TINY))
    assert model_shape(str(config.parent)) == model_shape(str(config))
    assert model_shape(str(config)).name == "mine"
    assert model_shape("LLaMA-3-8B").name == "llama-3-8b"
    assert all(model_shape(name).parameters > 0 for name in model_names())


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no config.json in it"), ("{", "is not JSON"), ("[]", "holds no object")],
)
def test_a_broken_folder_is_one_clear_error(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(PlanError, match=f"{tmp_path}.*{message}"):
        model_shape(str(tmp_path))


def test_unknown_names_are_met_with_the_nearest_known() -> None:
    with pytest.raises(PlanError, match="did you mean 'llama-3-70b'"):
        model_shape("llama3-70b")
    with pytest.raises(PlanError, match="did you mean 'H100-80G'"):
        gpu_kind("H100-80")
    with pytest.raises(PlanError, match="did you mean 'H100-80G' or 'H100-94G'"):
        gpu_kind("h100")
    assert gpu_kind("h100-80g") is gpu_kinds()["H100-80G"]
