"""A program for the bare client runs on a fleet after changing its import and its constructor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentcloud.cluster.sandbox import FaultRule, SandboxConfig
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.cluster.sandbox.settings import FaultKind
from tests.cluster.serving import CANARY, KEY_ENV

PROGRAM = """
import asyncio
import anthropic
from anthropic import AsyncAnthropic

client = AsyncAnthropic()


async def ask(number: int) -> str:
    try:
        message = await client.messages.create(
            model="claude-sonnet-4-20250514",
            max_tokens=64,
            messages=[{"role": "user", "content": f"Say something about {number}."}],
        )
    except anthropic.RateLimitError as error:
        return f"limited {error.status_code}"
    return f"{message.stop_reason} {message.content[0].text[:1]}"


async def main() -> None:
    answers = await asyncio.gather(*(ask(number) for number in range(60)))
    print(sorted(set(answers)), len(answers))


asyncio.run(main())
"""

#: What stands for a running cluster: the import of the changed program, with a path behind it.
FLEET = """
import random, sys
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.client import AsyncAgentCloud as Client
from agentcloud.cluster.clock import SystemClock
from agentcloud.cluster.endpoints import hosted_specs
from agentcloud.cluster.hosted import HostedEndpoint
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.cluster.scheduler_local import LocalScheduler
from tests.cluster.serving import fleet

config = fleet(sys.argv[1], retry={"base_s": 0.01, "max_attempts": int(sys.argv[2])})
core = SchedulerCore(
    config, load_catalog().with_overrides(config.hosted), SystemClock(), random.Random(1)
)
core.register(hosted_specs(config))


def AsyncAgentCloud():
    return Client(
        Inference(
            LocalScheduler(core),
            lambda spec: HostedEndpoint(spec, config.accounts[spec.account]),
            config,
        )
    )
"""


def changed(program: str) -> str:
    """The program with its import and its constructor changed."""
    ours = program.replace(
        "from anthropic import AsyncAnthropic", "from fleet_of_the_test import AsyncAgentCloud"
    ).replace("AsyncAnthropic()", "AsyncAgentCloud()")
    different = [
        (one, other)
        for one, other in zip(program.splitlines(), ours.splitlines(), strict=True)
        if one != other
    ]
    assert len(different) == 2, "the import and the constructor, nothing else"
    return ours


@pytest.mark.parametrize(
    ("attempts", "limited", "said"),
    [
        # Limited now and then: the retries see to it. Every other call and no retry: its own
        # clause for RateLimitError catches what is left.
        (12, 5, "['end_turn ['] 60"),
        (1, 2, "['end_turn [', 'limited 429'] 60"),
        (4, None, "['end_turn ['] 60"),
    ],
)
def test_only_import_and_constructor_change(
    tmp_path: Path, attempts: int, limited: int | None, said: str
) -> None:
    rules = (
        ()
        if limited is None
        else (FaultRule(kind=FaultKind.RATE_LIMIT, retry_after_s=0, every=limited),)
    )
    (tmp_path / "fleet_of_the_test.py").write_text(FLEET)
    (tmp_path / "program.py").write_text(changed(PROGRAM))
    with SandboxProcess(SandboxConfig(faults=rules)) as sandbox:
        done = subprocess.run(
            [sys.executable, "program.py", sandbox.url, str(attempts)],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", KEY_ENV: CANARY, "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said
    assert CANARY not in done.stdout + done.stderr
