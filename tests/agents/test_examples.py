"""The examples run, over the real client and the sandbox."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentcloud.agents import Context, load_agent, run_agent
from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.errors import AgentError
from agentcloud.cluster.sandbox import Fault, FaultKind, Sandbox
from agentcloud.tasks.demo.triage import SYSTEM_PROMPT
from agentcloud.tasks.demo.triage import Triage as TrainedTriage
from tests.agents.conftest import LARGE, SMALL

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _path_undone() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


async def run(client: AsyncAgentCloud, target: str, item: Any) -> tuple[Any, Context]:
    ctx = Context(client)
    return await run_agent(load_agent(f"{EXAMPLES}/{target}"), ctx, item), ctx


async def test_triage(client: AsyncAgentCloud) -> None:
    lines = (EXAMPLES / "tickets.jsonl").read_text().splitlines()
    for line in lines[:3]:
        result, ctx = await run(client, "triage.py:triage", json.loads(line))
        TrainedTriage.model_validate(result.model_dump())
        assert [receipt.model for receipt in ctx.usage.receipts] == [SMALL]
    with pytest.raises(AgentError, match="bad input: text: Field required"):
        await run(client, "triage.py:triage", {"ticket": "wrong key"})


def test_triage_asks_as_the_embedded_model_was_trained() -> None:
    triage = load_agent(f"{EXAMPLES}/triage.py:triage")
    module = sys.modules[triage.__module__]
    assert module.SYSTEM == SYSTEM_PROMPT
    ours, trained = module.Triage.model_json_schema(), TrainedTriage.model_json_schema()
    assert list(ours["properties"].items()) == list(trained["properties"].items())


async def test_triage_checked_asks_the_large_tier_about_critical_tickets(
    client: AsyncAgentCloud,
) -> None:
    models: set[tuple[str, ...]] = set()
    for number in range(40):
        _, ctx = await run(client, "triage.py:triage_checked", {"text": f"ticket {number}"})
        models.add(tuple(receipt.model for receipt in ctx.usage.receipts))
    assert models == {(SMALL,), (SMALL, LARGE)}


async def test_cascade_goes_from_the_small_tier_to_the_large_one(client: AsyncAgentCloud) -> None:
    result, ctx = await run(client, "cascade.py:triage", {"text": "Where is my Atlas?"})
    TrainedTriage.model_validate(result.model_dump())
    assert [receipt.model for receipt in ctx.usage.receipts] == [SMALL]
    # The synthetic model guesses, so some of these are checked wrong by both tiers.
    item = {"text": "Atlas, beacon, ember, harbor or lumen: which is it?"}
    result, ctx = await run(client, "cascade.py:triage_checked", item)
    models = [receipt.model for receipt in ctx.usage.receipts]
    assert models in ([SMALL] * 3, [*[SMALL] * 3, LARGE])
    assert (ctx.usage.receipts[-1].escalated is not None) == (models[-1] == LARGE)


async def test_extract_returns_a_row_even_when_nothing_validates(client: AsyncAgentCloud) -> None:
    result, ctx = await run(client, "extract.py:extract", {"text": "Invoice 1 from Acme: 2 x 3"})
    assert (result["invoice"] is None) != (result["problem"] is None)
    assert ctx.usage.calls >= 1


async def test_orders_calls_its_tool(client: AsyncAgentCloud) -> None:
    # The sandbox's synthetic model calls tools whose names it reads.
    result, _ = await run(client, "orders.py:answer", {"text": "Good morning."})
    assert result["calls"] == 1
    result, _ = await run(client, "orders.py:answer", {"text": "Use lookup_order for 10234."})
    assert result["calls"] == 2


async def test_assistant_uses_an_mcp_server_and_another_agent(client: AsyncAgentCloud) -> None:
    result, ctx = await run(client, "assistant.py:answer", {"text": "Good morning."})
    assert result["calls"] == 1
    result, ctx = await run(client, "assistant.py:answer", {"text": "Use count_stock for Atlas."})
    assert [receipt.model for receipt in ctx.usage.receipts] == [SMALL] * 2
    result, ctx = await run(client, "assistant.py:answer", {"text": "Use write_apology, it broke."})
    assert [receipt.model for receipt in ctx.usage.receipts] == [SMALL, LARGE, SMALL]


async def test_research_keeps_going_when_a_topic_fails(
    client: AsyncAgentCloud, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault(kind=FaultKind.REFUSAL), count=1)
    item = {"topics": ["pairing", "battery", "refund"]}
    result, _ = await run(client, "research.py:research", item)
    answers = [finding.answer for finding in result["findings"]]
    assert [finding.topic for finding in result["findings"]] == item["topics"]
    assert answers.count(None) == 1
    assert result["brief"]


async def test_streaming(client: AsyncAgentCloud, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = await run(client, "streaming.py:draft", {"text": "Tell me a story."})
    assert result["draft"].startswith("[synthetic")
    await sys.modules[load_agent(f"{EXAMPLES}/streaming.py:draft").__module__].main("Hi.", client)
    printed = capsys.readouterr().out
    assert f"main/{SMALL}" in printed
    assert "first token: " in printed
    assert "not measured" not in printed


PORTED = (EXAMPLES / "port_from_anthropic.py").read_text()
BARE = PORTED.replace(
    "from agentcloud.cluster.client import AsyncAgentCloud", "from anthropic import AsyncAnthropic"
).replace("\nclient = AsyncAgentCloud()\n", "\nclient = AsyncAnthropic()\n")


async def test_the_ported_program_is_the_same_but_for_two_lines(
    client: AsyncAgentCloud,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = [a for a, b in zip(PORTED.splitlines(), BARE.splitlines(), strict=True) if a != b]
    assert len(changed) == 2

    # The bare program runs as Anthropic's client runs it.
    monkeypatch.setenv("ANTHROPIC_BASE_URL", sandbox.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sandbox-bare")
    bare: dict[str, Any] = {"__name__": "bare"}
    exec(compile(BARE, "bare", "exec"), bare)
    async with bare["client"]:
        await bare["main"]()
    answers_of_the_bare_program = capsys.readouterr().out.splitlines()

    ported: dict[str, Any] = {"__name__": "ported"}
    exec(compile(PORTED, "ported", "exec"), ported)
    ported["client"] = client  # the constructor alone would look for a cluster
    await ported["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(answers_of_the_bare_program) == 8
    assert lines[0].startswith("France: [synthetic ")

    sandbox.add_fault(Fault(kind=FaultKind.RATE_LIMIT, retry_after_s=0), count=100)
    ported["client"] = client.with_options(max_retries=0)
    assert (await ported["capital"]("France")).startswith("rate limited: ")
