"""The commands that need nothing: demo, sandbox."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

import typer


def demo_command(
    tasks: Annotated[int, typer.Option(min=1, help="Tickets to triage.")] = 240,
    folder: Annotated[
        Path, typer.Option(help="Where the run's files go, in a folder of its own.")
    ] = Path("agentcloud-runs"),
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks at once.")] = 64,
    dashboard: Annotated[bool, typer.Option(help="Run Ray's dashboard too.")] = True,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep the cluster up until Ctrl-C, to look around.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Triage support tickets with a local model on vLLM and a hosted one; no key, no GPU needed.

    Without ANTHROPIC_API_KEY a sandbox on this machine stands in for Anthropic: a second, larger
    local model answers there, at the hosted model's prices, and nothing is paid. Examples:

        agentcloud demo

        agentcloud demo --tasks 1000 --stay
    """
    from agentcloud.tasks.demo.run import run_demo

    status = run_demo(
        tasks=tasks,
        folder=folder,
        concurrency=concurrency,
        dashboard=dashboard,
        stay=stay,
        as_json=as_json,
    )
    raise typer.Exit(status)


def sandbox_command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8787,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    config: Annotated[
        str | None,
        typer.Option(help="JSON text or file: limits, latency, faults, models, keys."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder or embedded:NAME that answers, on a real engine. "
            "[default: synthetic answers]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the URL as JSON.")] = False,
) -> None:
    """Serve an Anthropic-shaped API for development and tests: no key, no cost.

    Any key that starts with `sandbox` is accepted. Examples:

        agentcloud sandbox

        agentcloud sandbox --model embedded:triage-large

        agentcloud sandbox --config '{"limits": {"*": {"requests_per_minute": 50}}}'
    """
    from agentcloud.cluster.sandbox.__main__ import load_config
    from agentcloud.cluster.sandbox.server import serve

    settings = load_config(config)

    def on_ready(url: str) -> None:
        if as_json:
            typer.echo(json.dumps({"url": url, "pid": os.getpid()}))
            return
        typer.echo(f"sandbox: {url} (Ctrl-C ends it)")
        typer.echo(f"use it:  base_url: {url} in fleet.yaml's account, key sandbox-anything")

    if model is None:
        asyncio.run(serve(settings, host=host, port=port, on_ready=on_ready))
        return
    from agentcloud.cluster.sandbox.engine_backend import serve_with_engine

    def on_engine() -> None:
        typer.echo(json.dumps({"ready": True}) if as_json else f"{model} answers")

    asyncio.run(
        serve_with_engine(
            settings, model, host=host, port=port, on_ready=on_ready, on_engine=on_engine
        )
    )
