"""Tools of MCP servers: real ones, over stdio and over HTTP on loopback."""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agentcloud.agents import Context, Http, Stdio, mcp_tools, tool
from agentcloud.agents.mcp import McpServer
from agentcloud.agents.mcp_content import to_content
from agentcloud.agents.tool_base import AnyTool
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.errors import AgentError, ConfigError, ToolFailed, ToolServerLost
from tests.agents.fakes import ScriptedClient, call, message
from tests.agents.mcp_processes import Running, stdio
from tests.agents.mcp_server import PNG

OLD_SERVER = str(Path(__file__).with_name("old_mcp_server.py"))


def named(tools: list[AnyTool]) -> dict[str, AnyTool]:
    return {one.name: one for one in tools}


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest) -> McpServer:
    if request.param == "stdio":
        return stdio()
    return Http(request.getfixturevalue("running").url)


async def test_a_model_uses_a_server_s_tools(server: McpServer) -> None:
    client = ScriptedClient(
        message(call("add", "t1", a=1, b=2), call("picture", "t2"), call("refuse", "t3")),
        message("done"),
    )
    async with mcp_tools(server) as tools:
        assert await Context(client).ask("go", tools=tools) == "done"
    declared = {param["name"]: param for param in client.requests[0]["tools"]}
    assert declared["add"]["description"] == "Add two numbers."
    assert declared["add"]["input_schema"]["required"] == ["a", "b"]
    assert "look_up" in declared  # its own name, `look.up`, is none that the API takes
    sums, picture, refused = client.requests[1]["messages"][-1]["content"]
    assert sums["content"] == "3"
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    assert picture["content"] == [{"type": "image", "source": source}]
    assert refused["is_error"]
    assert refused["content"] == "refuse failed: no such file; try list_files"


async def test_only_tools_that_the_server_calls_harmless_are_repeated() -> None:
    client = ScriptedClient(message(call("read", "t1"), call("write", "t2")), message("done"))
    ctx = Context(client, clock=FakeClock())
    async with mcp_tools(stdio(retries=3)) as tools:
        await ctx.ask("go", tools=tools)
    read, write = client.requests[1]["messages"][-1]["content"]
    assert read["content"] == "ok"
    assert write["is_error"]
    assert "busy" in write["content"]
    assert ctx.attempts.used == 1


async def test_a_name_is_changed_for_the_model_only(server: McpServer) -> None:
    async with mcp_tools(server) as tools:
        content = await named(tools)["look_up"].run({"name": "Ann"})
    assert isinstance(content, str)
    assert '"age": 7' in content


async def test_wrong_arguments_go_back_to_the_model(server: McpServer) -> None:
    async with mcp_tools(server) as tools:
        with pytest.raises(ToolFailed, match="valid integer"):
            await named(tools)["add"].run({"a": "x", "b": 1})


async def test_a_server_that_dies_ends_the_ask_and_not_the_agent(server: McpServer) -> None:
    client = ScriptedClient(message(call("die")))
    async with mcp_tools(server) as tools:
        with pytest.raises(ToolServerLost, match=r"ended while die ran; run it by hand") as caught:
            await Context(client).ask("go", tools=tools)
        assert "\n" not in str(caught.value)
        with pytest.raises(ToolServerLost):
            await named(tools)["add"].run({"a": 1, "b": 2})
        await asyncio.sleep(0)  # the agent goes on: nothing cancels it
    assert caught.value.server in str(server)


async def test_a_server_of_the_older_protocol_with_pages_of_tools() -> None:
    async with mcp_tools(Stdio(sys.executable, OLD_SERVER)) as tools:
        assert [one.name for one in tools] == ["one", "two", "three"]
        assert await named(tools)["three"].run({}) == "this is three"


async def test_last_words_are_told_without_secrets() -> None:
    async with mcp_tools(stdio(env={"TEST_TOKEN": "s3cret-token"})) as tools:
        with pytest.raises(ToolServerLost, match=r"\(it said: fatal: disk of \*\*\* is gone\)"):
            await named(tools)["die"].run({})


async def test_secrets_reach_the_server_and_are_never_shown(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    local = stdio(env={"TEST_TOKEN": SecretStr("s3cret")}, prefix="local_")
    remote = Http(running.url, headers={"Authorization": "Bearer s3cret"})
    async with mcp_tools(local, remote) as tools:
        assert await named(tools)["local_secret"].run({}) == "s3cret"
        assert await named(tools)["headers"].run({}) == "Bearer s3cret"
    assert caplog.records
    assert "s3cret" not in caplog.text
    remote = Http(running.url + "?key=s3cret")  # not where it belongs, but not shown either
    for shown in (local, remote):
        assert "s3cret" not in repr(shown) + str(shown) + repr(vars(shown)["_secrets"])
    assert repr(remote) == f"<MCP server {running.url}>"
    with pytest.raises(AgentError, match="put them into headers=") as caught:
        Http("https://me:s3cret@host/mcp")
    assert "s3cret" not in str(caught.value)


async def test_a_call_that_takes_too_long_is_cancelled_on_the_server(tmp_path: Path) -> None:
    told = tmp_path / "cancelled"
    server = stdio(env={"TEST_CANCELLED": str(told)}, timeout_s=0.3, only=["wait", "add"])
    async with mcp_tools(server) as tools:
        assert sorted(named(tools)) == ["add", "wait"]
        with pytest.raises(ToolFailed, match=r"wait took longer than 0.3 s"):
            await named(tools)["wait"].run({})
        while not told.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
        assert await named(tools)["add"].run({"a": 1, "b": 2}) == "3"


async def test_leaving_ends_the_server_and_its_tools() -> None:
    async with mcp_tools(stdio(prefix="x_"), stdio(prefix="y_")) as tools:
        by_name = named(tools)
        assert len(by_name) == len(tools)
        assert await by_name["y_add"].run({"a": 1, "b": 1}) == "2"
    with pytest.raises(ToolServerLost, match=r"work inside `async with mcp_tools"):
        await by_name["x_add"].run({"a": 1, "b": 1})


async def test_a_cancelled_agent_leaves_no_server() -> None:
    ready = asyncio.Event()
    found: list[AnyTool] = []

    async def agent() -> None:
        async with mcp_tools(stdio()) as tools:
            found.extend(tools)
            ready.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(agent())
    await ready.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ToolServerLost):
        await found[0].run({})
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("mcp")]


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (
            Stdio("no-such-program"),
            r"`no-such-program` cannot be started: no-such-program: No such",
        ),
        (
            Stdio(sys.executable, "-c", "raise SystemExit('config.toml is missing')"),
            r"ended before it was ready .*by hand to see why \(it said: config.toml is missing\)",
        ),
        (
            Stdio(sys.executable, "-c", "input(); input()", start_timeout_s=0.3),
            "gave no list of tools in 0.3 s; raise start_timeout_s",
        ),
        (Http("http://127.0.0.1:9/mcp"), "http://127.0.0.1:9/mcp cannot be reached .*running"),
    ],
)
async def test_a_server_that_does_not_start_is_one_line(server: McpServer, words: str) -> None:
    with pytest.raises(ToolServerLost, match=words) as caught:
        async with mcp_tools(stdio(), server):
            raise AssertionError("never entered")
    assert "\n" not in str(caught.value)


async def test_a_wrong_path_says_the_status(running: Running) -> None:
    with pytest.raises(ToolServerLost, match=r"URL and headers right\? \(it said: HTTP 404"):
        async with mcp_tools(Http(running.url + "x")):
            raise AssertionError("never entered")


async def test_a_tool_that_is_not_there_and_one_that_is_twice() -> None:
    with pytest.raises(AgentError, match=r"has no tool 'ad'; it has: add, look\.up"):
        async with mcp_tools(stdio(only=["ad"])):
            raise AssertionError("never entered")

    @tool
    def add() -> None:
        """Add."""

    async with mcp_tools(stdio(only=["add"])) as tools:
        with pytest.raises(AgentError, match="two tools are named add"):
            await Context(ScriptedClient()).ask("go", tools=[add, *tools])


async def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigError, match=r"run pip install 'agentcloud\[mcp\]'"):
        async with mcp_tools(stdio()):
            raise AssertionError("never entered")


async def test_what_cannot_be_shown_is_told_as_text() -> None:
    async with mcp_tools(stdio(only=["sound"])) as tools:
        content = await tools[0].run({})
    assert content == "(audio of type audio/wav, which cannot be shown)"


@pytest.mark.parametrize(
    ("blocks", "structured", "content"),
    [
        ([], None, "(the tool returned nothing)"),
        ([], {"a": 1}, '{"a": 1}'),
        ([{"type": "text", "text": ""}, {"type": "text", "text": "x"}], {"a": 1}, "x"),
        (
            [{"type": "resource", "resource": {"uri": "file:a.txt", "text": "hi"}}],
            None,
            "file:a.txt:\nhi",
        ),
        (
            [{"type": "resource_link", "uri": "https://x/y", "name": "y", "description": "why"}],
            None,
            "https://x/y why",
        ),
        (
            [
                {
                    "type": "resource",
                    "resource": {"uri": "a", "blob": "AA", "mimeType": "application/pdf"},
                }
            ],
            None,
            [
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"},
                }
            ],
        ),
        (
            [{"type": "image", "data": "AA", "mimeType": "image/bmp"}],
            None,
            "(an image of type image/bmp, which cannot be shown)",
        ),
    ],
)
def test_content(blocks: list[dict[str, Any]], structured: Any, content: Any) -> None:
    assert to_content(blocks, structured) == content
