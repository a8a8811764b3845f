"""`agentcloud plan`: a plan as a table for people and as a dict for programs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from agentcloud.cluster.memory import DEFAULT_UTILIZATION, GIB
from agentcloud.cluster.plan import DegreeVerdict, Hardware, Plan, Verdict, Workload, make_plan
from agentcloud.cluster.plan_data import gpu_kind, model_shape

_STYLES = {
    Verdict.FITS: "green",
    Verdict.LITTLE_KV: "yellow",
    Verdict.TOO_BIG: "red",
    Verdict.INVALID: "dim",
}


def plan_command(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, model folder, or path of a config.json.")
    ],
    gpu: Annotated[str, typer.Option(help="GPU kind of the catalogue, e.g. H100-80G.")],
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs in one node.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes a replica may span.")] = 1,
    dtype: Annotated[
        str,
        typer.Option(help="As vLLM's --dtype, or a what-if quantisation: fp8, awq, gptq."),
    ] = "auto",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one request, prompt and answer. [default: up to 8192]"),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests of that length whose KV cache must fit at once.")
    ] = 16,
    sequences: Annotated[
        int, typer.Option(min=1, help="vLLM's max_num_seqs: sizes the sampler's buffers.")
    ] = 256,
    fp8_kv: Annotated[bool, typer.Option("--fp8-kv", help="Keep the KV cache at 8 bits.")] = False,
    utilization: Annotated[
        float, typer.Option(min=0.05, max=1.0, help="vLLM's gpu_memory_utilization.")
    ] = DEFAULT_UTILIZATION,
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, help="Judge this degree only.")
    ] = None,
    pipeline_parallel: Annotated[
        int | None,
        typer.Option(
            min=1, help="Judge this many stages only. [default: 1 with --tensor-parallel]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a model's memory: weights, KV cache and the smallest parallel degree that fits.

    Nothing is loaded and no GPU is needed. Examples:

        agentcloud plan llama-3-70b --gpu H100-80G

        agentcloud plan llama-3.1-405b --gpu H100-80G --nodes 2 --context 32768 --concurrency 8

        agentcloud plan ./my-model --gpu L4-24G --gpus-per-node 4 --dtype fp8 --json
    """
    plan = make_plan(
        model_shape(model),
        Hardware(gpu_kind(gpu), gpus_per_node=gpus_per_node, nodes=nodes, utilization=utilization),
        Workload(
            context_tokens=context, concurrency=concurrency, sequences=sequences, fp8_kv=fp8_kv
        ),
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
    )
    if as_json:
        typer.echo(json.dumps(plan_as_dict(plan), indent=2))
    else:
        Console(emoji=False).print(render_plan(plan))


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """A plan as JSON-able data; bytes and tokens are whole numbers."""
    return {
        "model": plan.shape.name,
        "parameters": plan.parameters,
        "weights": plan.shape.weights_label,
        "weight_bytes": plan.weight_bytes,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "gpu": plan.hardware.gpu.name,
        "gpu_memory_bytes": plan.hardware.gpu.memory_bytes,
        "usable_bytes_per_gpu": plan.budget_bytes,
        "gpus_per_node": plan.hardware.gpus_per_node,
        "nodes": plan.hardware.nodes,
        "context_tokens": plan.context_tokens,
        "concurrency": plan.workload.concurrency,
        "needed_kv_tokens": plan.needed_tokens,
        "chosen": _degree_as_dict(plan.chosen),
        "tried": [_degree_as_dict(degree) for degree in plan.tried],
    }


def render_plan(plan: Plan) -> RenderableType:
    """A plan as a table with a line above (the model) and below (the choice)."""
    gpu = plan.hardware.gpu
    head = Text.assemble(
        (plan.shape.name, "bold"),
        f": {plan.parameters / 1e9:.2f} B parameters, {plan.weight_bytes / 1e9:.1f} GB as "
        f"{plan.shape.weights_label}; KV cache {plan.kv_bytes_per_token / 1024:g} KiB a token\n"
        f"{plan.hardware.nodes} x {plan.hardware.gpus_per_node} {gpu.name}: "
        f"{gpu.memory_bytes / GIB:.1f} GiB each, vLLM may use {plan.budget_bytes / GIB:.1f} "
        f"({plan.hardware.utilization:.0%})\n"
        f"asked for: {plan.workload.concurrency} requests of {plan.context_tokens:,} tokens at "
        f"once, {plan.needed_tokens:,} tokens of KV cache",
    )
    table = Table(title_justify="left", header_style="bold")
    table.add_column("degree", no_wrap=True)
    for column in ("GPUs", "weights", "other", "KV", "KV tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for degree in plan.tried:
        impossible = degree.verdict is Verdict.INVALID
        sizes = (degree.weight_bytes, degree.allowance_bytes, degree.kv_bytes)
        table.add_row(
            degree.label,
            str(degree.gpus),
            *("" if impossible else f"{size / GIB:.1f}" for size in sizes),
            "" if impossible else f"{degree.kv_capacity_tokens:,}",
            f"{degree.verdict.value}: {degree.reason}",
            style="bold green" if degree is plan.chosen else _STYLES[degree.verdict],
        )
    nodes = f" over {plan.chosen.nodes} nodes" if plan.chosen.nodes > 1 else ""
    foot = Text.assemble(
        "GiB of the GPU with the least room; other: activations, CUDA and its graphs, NCCL.\n",
        "smallest that fits: ",
        (plan.chosen.label, "bold green"),
        f", {plan.chosen.gpus} GPU{'s' if plan.chosen.gpus > 1 else ''} a replica{nodes}",
    )
    return Group(head, table, foot)


def _degree_as_dict(degree: DegreeVerdict) -> dict[str, Any]:
    return {
        "tensor_parallel": degree.tensor_parallel,
        "pipeline_parallel": degree.pipeline_parallel,
        "gpus": degree.gpus,
        "nodes": degree.nodes,
        "verdict": degree.verdict.name.lower(),
        "reason": degree.reason,
        "weight_bytes_per_gpu": degree.weight_bytes,
        "allowance_bytes_per_gpu": degree.allowance_bytes,
        "kv_bytes_per_gpu": degree.kv_bytes,
        "kv_capacity_tokens": degree.kv_capacity_tokens,
    }
