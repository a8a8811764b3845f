"""Plans against published facts, vLLM's own rules, and their properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.memory import (
    GIB,
    Gpu,
    kv_bytes_per_token,
    rank_weight_bytes,
    split_problem,
    stage_layers,
)
from agentcloud.cluster.plan import Hardware, Plan, Verdict, Workload, make_plan
from agentcloud.cluster.plan_data import cpu_share, gpu_kind, model_names, model_shape
from agentcloud.cluster.shapes import ModelShape


def plan(
    model: str, gpu: str = "H100-80G", *, per_node: int = 8, nodes: int = 1, dtype: str = "auto",
    workload: Workload | None = None,
) -> Plan:  # fmt: skip
    hardware = Hardware(gpu_kind(gpu), gpus_per_node=per_node, nodes=nodes)
    return make_plan(model_shape(model), hardware, workload or Workload(), dtype=dtype)


def verdicts(found: Plan) -> dict[str, Verdict]:
    return {degree.label: degree.verdict for degree in found.tried}


def test_llama_70b_at_bf16_on_h100s() -> None:
    found = plan("llama-3-70b")
    assert found.weight_bytes / 1e9 == pytest.approx(141.1, abs=0.1)
    by_label = {degree.label: degree for degree in found.tried}
    assert by_label["TP=1"].verdict is Verdict.TOO_BIG
    assert by_label["TP=1"].reason == "131.4 GiB of weights a GPU, 72.8 GiB usable"
    assert by_label["TP=2"].verdict is Verdict.LITTLE_KV
    assert by_label["TP=2"].reason.startswith("holds the weights with almost no KV")
    assert by_label["TP=2"].kv_capacity_tokens < 10_000
    assert by_label["TP=3"].reason == "64 attention heads are not divisible by 3"
    assert found.chosen is by_label["TP=4"]
    # vLLM users see about 450,000 tokens on four of them.
    assert 400_000 < found.chosen.kv_capacity_tokens < 500_000


def test_llama_8b_fits_one_h100_as_vllm_logs_it() -> None:
    # vLLM at 0.90 logged 53.29 GiB of KV cache for it on 79.22 GiB, without CUDA graphs
    # (vllm-project/vllm pull request 10511); the plan sets 1 GiB aside for those.
    hardware = Hardware(replace(gpu_kind("H100-80G"), memory_bytes=int(79.22 * GIB)),
                        utilization=0.90)  # fmt: skip
    found = make_plan(model_shape("llama-3-8b"), hardware)
    assert found.chosen.label == "TP=1"
    assert found.chosen.weight_bytes / GIB == pytest.approx(14.96, abs=0.01)
    assert found.chosen.kv_bytes / GIB == pytest.approx(53.29 - 1, abs=0.2)


def test_llama_8b_on_a_24_gib_gpu_holds_a_request_or_two() -> None:
    one = Workload(concurrency=1)
    assert plan("llama-3-8b", "L4-24G", workload=one).chosen.label == "TP=1"
    with pytest.raises(PlanError, match="TP=1 with concurrency 1"):
        plan("llama-3-8b", "L4-24G", per_node=1)


def test_405b_at_bf16_takes_two_nodes_and_at_fp8_one() -> None:
    found = plan("llama-3.1-405b", nodes=2)
    assert (found.chosen.tensor_parallel, found.chosen.pipeline_parallel) == (8, 2)
    assert found.chosen.nodes == 2
    assert plan("llama-3.1-405b", dtype="fp8").chosen.label == "TP=8"
    with pytest.raises(PlanError) as refused:
        plan("llama-3.1-405b")
    assert "94.5 GiB of weights a GPU, 72.8 GiB usable" in str(refused.value)
    assert refused.value.nearest == (
        "dtype fp8 with tensor_parallel: 8; or 2 nodes with tensor_parallel: 8 pipeline_parallel: 2"
    )


def test_a_node_with_too_few_gpus_is_told_how_many_would_do() -> None:
    with pytest.raises(PlanError) as refused:
        plan("llama-3-70b", per_node=1)
    assert refused.value.nearest == "4 GPUs a node with tensor_parallel: 4"


def test_mixtral_holds_all_its_experts() -> None:
    found = plan("mixtral-8x7b")
    assert found.weight_bytes / 1e9 == pytest.approx(93.4, abs=0.1)
    assert found.chosen.label == "TP=2"


def test_qwen_72b_at_int4_cannot_split_its_groups() -> None:
    # Known of the unpadded checkpoint: 29,568 / 2 is no multiple of 128.
    found = plan("qwen-2.5-72b", "H200-141G", dtype="awq")
    assert verdicts(found)["TP=1"] is Verdict.FITS
    tp2 = next(degree for degree in found.tried if degree.label == "TP=2")
    assert tp2.reason == "down_proj: 14784 inputs a rank are no multiple of the group size 128"


def test_a_pipeline_inside_a_node_serves_where_heads_cannot_be_split() -> None:
    found = plan("qwen-2.5-72b", "A100-80G", dtype="awq", workload=Workload(concurrency=32))
    assert found.chosen.label == "TP=1 PP=2"
    assert found.chosen.nodes == 1


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    shape = model_shape("qwen-2.5-7b")
    assert split_problem(shape, 4) is None
    assert split_problem(shape, 7) == (
        "7 is no multiple of the 4 KV heads, so they cannot be replicated"
    )
    eight_way = kv_bytes_per_token(model_shape("llama-3-8b"), tensor_parallel=8)
    assert kv_bytes_per_token(model_shape("llama-3-8b"), tensor_parallel=16) == eight_way


def test_a_gpu_without_bfloat16_loads_float16() -> None:
    assert plan("qwen-2.5-0.5b", "T4-16G").shape.dtype == "float16"
    with pytest.raises(PlanError, match="T4-16G has no bfloat16; nearest that fits: dtype float16"):
        plan("qwen-2.5-0.5b", "T4-16G", dtype="bfloat16")


def test_a_context_beyond_the_models_own_is_refused() -> None:
    with pytest.raises(PlanError, match="context of 9,000 tokens is beyond the model's 8,192"):
        plan("llama-3-70b", workload=Workload(context_tokens=9000))


def test_a_degree_asked_for_is_judged_alone_and_refused_with_what_fits() -> None:
    hardware = Hardware(gpu_kind("H100-80G"))
    shape = model_shape("llama-3-70b")
    chosen = make_plan(shape, hardware, tensor_parallel=8).chosen
    assert chosen.label == "TP=8"
    with pytest.raises(PlanError) as refused:
        make_plan(shape, hardware, tensor_parallel=2)
    assert "TP=2: holds the weights with almost no KV" in str(refused.value)
    assert (refused.value.nearest or "").startswith("tensor_parallel: 4")
    with pytest.raises(PlanError, match="64 attention heads are not divisible by 3"):
        make_plan(shape, hardware, tensor_parallel=3)
    with pytest.raises(PlanError, match="needs more GPUs than there are"):
        make_plan(shape, hardware, tensor_parallel=16)
    staged = make_plan(shape, hardware, tensor_parallel=2, pipeline_parallel=2)
    assert staged.chosen.label == "TP=2 PP=2"


def test_on_the_cpu_the_kv_cache_is_what_it_was_given() -> None:
    shape = model_shape("qwen-2.5-0.5b")
    one = Workload(context_tokens=1024, concurrency=1, sequences=8)

    def on_cpu(memory_gib: float, ranks: int) -> Plan:
        share = cpu_share(int(memory_gib * GIB), ranks=ranks)
        hardware = Hardware(share, gpus_per_node=ranks, kv_bytes_per_gpu=GIB)
        return make_plan(shape, hardware, one, tensor_parallel=ranks)

    found = on_cpu(16, 2)
    assert found.chosen.label == "TP=2"
    # 1 GiB over 12 KiB a token, halved over two ranks; one block is vLLM's null block.
    assert found.chosen.kv_bytes == GIB
    assert found.chosen.kv_capacity_tokens == (GIB // (16 * 6144) - 1) * 16
    with pytest.raises(PlanError, match="leave no room") as refused:
        on_cpu(1.5, 1)
    assert "of KV cache" in str(refused.value)


def test_layers_are_dealt_as_vllm_deals_them() -> None:
    utils = pytest.importorskip("vllm.distributed.utils")
    for layers in (1, 2, 7, 28, 80, 126):
        for stages in range(1, min(layers, 9) + 1):
            ours = [(part.start, part.stop) for part in stage_layers(layers, stages)]
            assert ours == [utils.get_pp_indices(layers, rank, stages) for rank in range(stages)]


MODELS = st.sampled_from(model_names())
GPUS = st.builds(
    lambda gib, capability: Gpu("any", int(gib * GIB), compute_capability=capability),
    st.floats(8, 200), st.sampled_from([8.0, 9.0]),
)  # fmt: skip
HARDWARE = st.builds(
    Hardware, GPUS, st.sampled_from([1, 2, 3, 4, 8, 16]), st.integers(1, 3),
    st.floats(0.5, 0.95),
)  # fmt: skip
DTYPES = st.sampled_from(["auto", "float16", "fp8", "awq"])


def try_plan(shape: ModelShape, hardware: Hardware, workload: Workload, dtype: str) -> Plan | None:
    try:
        return make_plan(shape, hardware, workload, dtype=dtype)
    except PlanError:
        return None


def refusal_of(shape: ModelShape, hardware: Hardware, dtype: str) -> PlanError | None:
    try:
        make_plan(shape, hardware, dtype=dtype)
    except PlanError as error:
        return error
    return None


@settings(max_examples=40, deadline=None)
@given(MODELS, HARDWARE, DTYPES, st.integers(1, 32))
def test_what_a_plan_puts_on_a_gpu_fits_the_gpu(
    model: str, hardware: Hardware, dtype: str, concurrency: int
) -> None:
    found = try_plan(model_shape(model), hardware, Workload(concurrency=concurrency), dtype)
    assume(found is not None)
    assert found is not None
    for degree in found.tried:
        if degree.verdict is Verdict.INVALID:
            continue
        if degree.verdict is not Verdict.TOO_BIG:
            used = degree.weight_bytes + degree.allowance_bytes + degree.kv_bytes
            assert used <= found.budget_bytes <= hardware.gpu.memory_bytes
        assert found.shape.heads % degree.tensor_parallel == 0
        assert degree.tensor_parallel <= hardware.gpus_per_node
        assert degree.nodes <= hardware.nodes
    chosen = found.chosen
    assert chosen in found.tried
    assert chosen.kv_capacity_tokens >= found.needed_tokens
    for layers in stage_layers(found.shape.layers, chosen.pipeline_parallel):
        per_token = kv_bytes_per_token(
            found.shape, layers=len(layers), tensor_parallel=chosen.tensor_parallel
        )
        weights = rank_weight_bytes(found.shape, layers, chosen.tensor_parallel)
        held = weights + chosen.allowance_bytes + chosen.kv_capacity_tokens * per_token
        assert held <= found.budget_bytes
    # It is the first that fits: none before it in the order of cost does.
    before = found.tried[: found.tried.index(chosen)]
    assert all(degree.verdict is not Verdict.FITS for degree in before)


@settings(max_examples=40, deadline=None)
@given(MODELS, HARDWARE, DTYPES, st.integers(64, 8192), st.integers(64, 8192))
def test_a_longer_context_never_needs_less(
    model: str, hardware: Hardware, dtype: str, one: int, other: int
) -> None:
    shorter, longer = sorted((one, other))
    more = try_plan(model_shape(model), hardware, Workload(context_tokens=longer), dtype)
    assume(more is not None)
    assert more is not None
    less = try_plan(model_shape(model), hardware, Workload(context_tokens=shorter), dtype)
    assert less is not None
    order = (less.chosen.nodes, less.chosen.pipeline_parallel, less.chosen.tensor_parallel)
    assert order <= (more.chosen.nodes, more.chosen.pipeline_parallel, more.chosen.tensor_parallel)


@settings(max_examples=40, deadline=None)
@given(MODELS, st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), DTYPES)
def test_ranks_together_hold_the_whole_model_and_little_more(
    model: str, tp: int, stages: int, dtype: str
) -> None:
    shape = model_shape(model).with_dtype(dtype)
    assume(split_problem(shape, tp) is None)
    parts = stage_layers(shape.layers, stages)
    assert [layer for part in parts for layer in part] == list(range(shape.layers))
    ranks = sum(tp * rank_weight_bytes(shape, part, tp) for part in parts)
    whole = rank_weight_bytes(shape, range(shape.layers), 1)
    assert whole <= ranks
    # Held more than once: norms, routers and scales; a tied table, if its ends are on two stages.
    twice = shape.vocab * shape.hidden * shape.dtype_bytes if shape.tied_embeddings else 0
    assert ranks <= 1.02 * whole + twice


@settings(max_examples=40, deadline=None)
@given(MODELS, HARDWARE, DTYPES)
def test_a_refusal_is_one_line_and_the_hardware_it_names_does_fit(
    model: str, hardware: Hardware, dtype: str
) -> None:
    refused = refusal_of(model_shape(model), hardware, dtype)
    assume(refused is not None)
    assert refused is not None
    assert "\n" not in str(refused)
    for option in (refused.nearest or "").split("; or "):
        words = option.split()
        if len(words) > 1 and words[1] in ("nodes", "GPUs"):
            more = (
                replace(hardware, nodes=int(words[0]))
                if words[1] == "nodes"
                else replace(hardware, gpus_per_node=int(words[0]))
            )
            assert refusal_of(model_shape(model), more, dtype) is None
