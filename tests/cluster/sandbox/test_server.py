"""Running: in this process, as its own, with a real backend behind it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import psutil
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, ThinkingBlock, ToolUseBlock

from agentcloud.cluster.errors import ConfigError, ContextTooLong
from agentcloud.cluster.sandbox import (
    BackedResponder,
    Fault,
    FaultKind,
    RateLimits,
    Sandbox,
    SandboxConfig,
)
from agentcloud.cluster.sandbox.__main__ import main

MODEL = "claude-haiku-4-5"
HELLO: Any = [{"role": "user", "content": "Hello there"}]
COMMAND = [sys.executable, "-m", "agentcloud.cluster.sandbox", "--port", "0"]


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A sandbox of its own and its URL; it must have ended by itself afterwards."""
    child = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child, json.loads(child.stdout.readline())["url"]
        child.wait(10)
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


async def test_a_process_serves_as_configured_and_ends_cleanly() -> None:
    config = SandboxConfig.model_validate({"api_keys": ["one"], "answer_tokens": 16})
    with process("--config", config.model_dump_json()) as (child, url):
        async with AsyncAnthropic(base_url=url, api_key="one", max_retries=0) as client:
            message = await client.messages.create(model=MODEL, max_tokens=99, messages=HELLO)
            assert message.usage.output_tokens == 16
            child.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(child.wait, 10) == 0


@pytest.mark.parametrize("parent_is_direct", [True, False])
def test_a_process_ends_with_its_parent(parent_is_direct: bool) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    starter = (
        "import os, subprocess, sys; "
        "print(os.getpid(), flush=True); "
        f"child = subprocess.Popen([*{COMMAND!r}, '--parent-pid', str(os.getpid())]); "
        "child.wait()"
    )
    if parent_is_direct:
        parent = subprocess.Popen(
            [sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        parent.stdout.readline()
        sandbox = psutil.Process(json.loads(parent.stdout.readline())["pid"])
        parent.kill()
        parent.wait()
        parent.stdout.close()
        sandbox.wait(10)
        return
    watched = subprocess.Popen(sleeper)
    with process("--parent-pid", str(watched.pid)) as (child, _):
        watched.kill()
        watched.wait()
        assert child.wait(10) == 0


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('{"speed": 9}', "sandbox configuration: speed: Extra inputs are not permitted"),
        ('{"seed": "x"}', "sandbox configuration: seed: Input should be a valid integer"),
        ("/nowhere/at/all.json", "/nowhere/at/all.json: cannot read it: No such file"),
    ],
)
def test_a_bad_configuration_is_one_line(
    capsys: pytest.CaptureFixture[str], config: str, problem: str
) -> None:
    assert main(["--config", config]) == 2
    said = capsys.readouterr().err
    assert said.startswith(problem)
    assert said.count("\n") == 1


async def test_a_port_in_use_is_told(sandbox: Sandbox) -> None:
    port = int(sandbox.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port} .*another port"):
        await Sandbox(port=port).start()


async def test_the_url_needs_a_running_sandbox() -> None:
    sandbox = Sandbox()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = sandbox.url
    await sandbox.stop()


class ClientBackend:
    """A backend that is another server of the Messages API, reached by the real client."""

    def __init__(self, client: AsyncAnthropic) -> None:
        self._client = client
        self.asked: list[dict[str, Any]] = []

    async def create(self, params: dict[str, Any]) -> Message:
        self.asked.append(params)
        answer: Message = await self._client.messages.create(**params)
        return answer


async def test_a_backend_answers_under_the_sandboxs_name_limits_and_cache() -> None:
    prompt: Any = {"type": "text", "text": "a" * 8000, "cache_control": {"type": "ephemeral"}}
    params: Any = {"system": [prompt], "messages": HELLO, "max_tokens": 50}
    config = SandboxConfig(limits={"opus": RateLimits(input_tokens_per_minute=60_000)})
    async with (
        Sandbox() as engine,
        AsyncAnthropic(base_url=engine.url, api_key="sandbox", max_retries=0) as inner,
    ):
        renamed = AsyncAnthropic(base_url=engine.url, api_key="sandbox", max_retries=0)
        backend = ClientBackend(renamed)
        async with (
            Sandbox(config, responder=BackedResponder(backend)) as sandbox,
            AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
        ):
            direct = await inner.messages.create(model="claude-opus-5", **params)
            first = await client.messages.create(model="claude-opus-5", **params)
            async with client.messages.stream(model="claude-opus-5", **params) as stream:
                second = await stream.get_final_message()
            assert first.content[0].to_dict() == direct.content[0].to_dict()
            assert first.model == second.model == "claude-opus-5"
            assert first.usage.cache_creation_input_tokens == 2000
            assert second.usage.cache_read_input_tokens == 2000
            assert second.usage.output_tokens == direct.usage.output_tokens
            assert sandbox.calls[0].remaining["input_tokens"] == 60_000 - 2000 - 6
            assert backend.asked[0]["max_tokens"] == 50
        await renamed.close()


class OtherTokenizer:
    """Says what a model with a tokenizer of its own would say."""

    def __init__(self, message: dict[str, Any]) -> None:
        self._message = message
        self.asked: list[dict[str, Any]] = []

    async def create(self, params: dict[str, Any]) -> Message:
        self.asked.append(params)
        return Message.model_validate(self._message)


def spoken(content: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "type": "message",
        "role": "assistant",
        "model": "local",
        "content": content,
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 40, "output_tokens": 21},
        **more,
    }


async def test_a_backends_own_counts_tools_and_thinking_are_kept() -> None:
    backend = OtherTokenizer(
        spoken(
            [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "call_7", "name": "look", "input": {"at": "it"}},
            ],
            stop_reason="tool_use",
        )
    )
    async with (
        Sandbox(responder=BackedResponder(backend)) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
    ):
        tool: Any = {"name": "look", "input_schema": {"type": "object"}}
        params: Any = {
            "model": MODEL,
            "max_tokens": 2000,
            "tools": [tool],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        }
        async with client.messages.stream(messages=HELLO, **params) as stream:
            message = await stream.get_final_message()
        assert (message.usage.input_tokens, message.usage.output_tokens) == (40, 21)
        assert message.stop_reason == "tool_use"
        thinking, _, use = message.content
        assert isinstance(thinking, ThinkingBlock)
        assert isinstance(use, ToolUseBlock)
        assert (use.id, use.input) == ("call_7", {"at": "it"})
        # The thinking is signed here and accepted back, but the backend never sees it.
        content: Any = [thinking.to_dict(), use.to_dict()]
        result: Any = [{"type": "tool_result", "tool_use_id": "call_7", "content": "seen"}]
        turns: Any = [
            *HELLO,
            {"role": "assistant", "content": content},
            {"role": "user", "content": result},
        ]
        await client.messages.create(messages=turns, **params)
        assert "thinking" not in backend.asked[1]
        kinds = [block["type"] for block in backend.asked[1]["messages"][1]["content"]]
        assert kinds == ["tool_use"]
        sandbox.add_fault(Fault(kind=FaultKind.MAX_TOKENS, after_deltas=2))
        cut = await client.messages.create(messages=HELLO, **params)
        assert cut.stop_reason == "max_tokens"


async def test_a_backends_error_is_the_apis_error() -> None:
    class Failing:
        async def create(self, params: dict[str, Any]) -> Message:
            raise ContextTooLong("the prompt is too long", kind="invalid_request_error")

    class Broken:
        async def create(self, params: dict[str, Any]) -> Message:
            raise LookupError("a bug")

    for backend, status in ((Failing(), 400), (Broken(), 500)):
        async with (
            Sandbox(responder=BackedResponder(backend)) as sandbox,
            aiohttp.ClientSession() as session,
            session.post(
                f"{sandbox.url}/v1/messages",
                json={"model": MODEL, "max_tokens": 9, "messages": HELLO},
                headers={"x-api-key": "sandbox", "anthropic-version": "2023-06-01"},
            ) as answer,
        ):
            assert answer.status == status
            assert (await answer.json())["type"] == "error"


async def test_throughput_is_printed() -> None:
    """Not an assertion on speed: this machine is shared."""
    body = json.dumps({"model": MODEL, "max_tokens": 64, "messages": HELLO})
    headers = {"x-api-key": "sandbox", "anthropic-version": "2023-06-01"}
    calls = 1500
    with process() as (child, url):
        server = psutil.Process(child.pid)
        async with aiohttp.ClientSession(headers=headers) as session:
            numbers = iter(range(calls))

            async def ask() -> None:
                for _ in numbers:
                    async with session.post(f"{url}/v1/messages", data=body) as answer:
                        assert answer.status == 200
                        await answer.read()

            cpu_s, start_s = sum(server.cpu_times()[:2]), time.perf_counter()
            await asyncio.gather(*(ask() for _ in range(32)))
            wall_s = time.perf_counter() - start_s
            cpu_s = sum(server.cpu_times()[:2]) - cpu_s
            async with session.get(f"{url}/sandbox/state?last=0") as answer:
                assert (await answer.json())["outcomes"] == {"ok": calls}
        print(f"sandbox: {calls / wall_s:.0f} calls/s, {cpu_s / calls * 1e3:.3f} ms of CPU a call")
        os.kill(child.pid, signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, 10) == 0
