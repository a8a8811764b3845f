"""`python -m agentcloud.cluster.sandbox`: a sandbox as a process of its own.

Prints one line of JSON, `{"url": …, "pid": …}`, when it listens, and `{"ready": true}` once the
engine of `--model` runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentcloud.cluster.errors import AgentCloudError, ConfigError
from agentcloud.cluster.sandbox.faults import first_problem
from agentcloud.cluster.sandbox.server import serve
from agentcloud.cluster.sandbox.settings import SandboxConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        asyncio.run(_serve(options, load_config(options.config)))
    except AgentCloudError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


async def _serve(options: argparse.Namespace, config: SandboxConfig) -> None:
    where: dict[str, Any] = {
        "host": options.host, "port": options.port, "parent_pid": options.parent_pid,
    }  # fmt: skip
    if options.model is None:
        await serve(config, on_ready=_announce, **where)
        return
    # Imports vllm, which takes seconds: only who asks for an engine waits for it.
    from agentcloud.cluster.sandbox.engine_backend import serve_with_engine

    await serve_with_engine(
        config, options.model, on_ready=_announce, on_engine=_announce_engine, **where
    )


def load_config(source: str | None) -> SandboxConfig:
    """The configuration in JSON text, or in a file of it; None is the default.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong.
    """
    if source is None:
        return SandboxConfig()
    try:
        text = source if source.lstrip().startswith("{") else Path(source).read_text("utf-8")
        return SandboxConfig.model_validate_json(text)
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", where=source) from error
    except ValidationError as error:
        raise ConfigError(first_problem(error), where="sandbox configuration") from error


def _announce(url: str) -> None:
    print(json.dumps({"url": url, "pid": os.getpid()}), flush=True)


def _announce_engine() -> None:
    print(json.dumps({"ready": True}), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentcloud.cluster.sandbox",
        description="An Anthropic-shaped server for development and tests: no key, no cost.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port; 0 takes a free one")
    parser.add_argument("--config", help="JSON text or file: the fields of SandboxConfig")
    parser.add_argument("--parent-pid", type=int, help="end when this process ends")
    parser.add_argument(
        "--model", help="embedded:NAME or a model folder that answers; default: synthetic answers"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
