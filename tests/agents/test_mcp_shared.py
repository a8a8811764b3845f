"""`@agent(mcp=...)`: real servers, once for all tasks, again when lost, gone at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from agentcloud.agents import Agent, Context, Http, Stdio, agent, run_agent, tool
from agentcloud.agents.mcp_servers import McpServer
from agentcloud.agents.mcp_shared import McpServers
from agentcloud.agents.tool_base import AnyTool
from agentcloud.cluster.errors import AgentError, ToolServerLost
from tests.agents.fakes import ScriptedClient, call, message
from tests.agents.mcp_processes import Running, started, stdio


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[McpServers]:
    """As a worker has them; nothing of them is left after it."""
    async with McpServers() as shared:
        yield shared
    assert started() == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("mcp")]


@tool
def double(n: int) -> int:
    """Double a number."""
    return 2 * n


def adder(*servers: McpServer) -> Agent[str]:
    @agent(mcp=servers, tools=[double])
    async def add(ctx: Context, item: dict[str, Any]) -> str:
        """Add."""
        return await ctx.ask("go")

    return add


def adding(number: int) -> ScriptedClient:
    return ScriptedClient(message(call("add", a=number, b=1)), message("done"))


def result(client: ScriptedClient) -> Any:
    return client.requests[1]["messages"][-1]["content"][0]["content"]


async def named(servers: McpServers, server: McpServer) -> dict[str, AnyTool]:
    return {each.name: each for each in await servers.tools([server])}


async def test_many_tasks_at_once_share_one_process(servers: McpServers) -> None:
    add = adder(stdio())
    assert started() == [], "nothing runs before it is needed"
    clients = [adding(number) for number in range(40)]
    await asyncio.gather(*(run_agent(add, Context(c, servers=servers), {}) for c in clients))
    assert [result(client) for client in clients] == [str(n + 1) for n in range(40)]
    declared = [param["name"] for param in clients[0].requests[0]["tools"]]
    assert {"add", "double"} <= set(declared)
    (process,) = started()
    again = adding(7)
    await run_agent(add, Context(again, servers=servers), {})
    assert started() == [process]


async def test_an_agent_that_asks_nothing_starts_nothing(servers: McpServers) -> None:
    @agent(mcp=[stdio()])
    async def quiet(ctx: Context, item: dict[str, Any]) -> str:
        return await ctx.ask("go", tools=[])

    client = ScriptedClient(message("done"))
    assert await run_agent(quiet, Context(client, servers=servers), {}) == "done"
    assert started() == []
    assert "tools" not in client.requests[0]


async def test_a_lost_server_is_an_error_for_its_calls_and_a_new_one_for_the_next(
    servers: McpServers,
) -> None:
    add = adder(stdio())
    dying = [ScriptedClient(message(call(name)), message("done")) for name in ("wait", "die")]
    ended = await asyncio.gather(
        *(run_agent(add, Context(client, servers=servers), {}) for client in dying),
        return_exceptions=True,
    )
    assert [type(error) for error in ended] == [ToolServerLost, ToolServerLost]
    clients = [adding(number) for number in range(5)]
    await asyncio.gather(*(run_agent(add, Context(c, servers=servers), {}) for c in clients))
    assert [result(client) for client in clients] == ["1", "2", "3", "4", "5"]
    assert len(started()) == 1


async def test_one_that_is_killed_while_it_rests_costs_one_call(servers: McpServers) -> None:
    tools = await named(servers, stdio())
    (process,) = started()
    process.kill()
    psutil.wait_procs([process], timeout=10)
    with pytest.raises(ToolServerLost):
        await tools["add"].run({"a": 1, "b": 1})
    assert await tools["add"].run({"a": 1, "b": 1}) == "2", "the same tool, a new process"
    assert len(started()) == 1


async def test_over_http_it_goes_on_with_a_server_that_is_restarted(
    servers: McpServers, running: Running
) -> None:
    tools = await named(servers, Http(running.url))
    assert await tools["add"].run({"a": 1, "b": 1}) == "2"
    await running.kill()
    for _ in range(2):  # lost, then not to be reached
        with pytest.raises(ToolServerLost):
            await tools["add"].run({"a": 1, "b": 1})
    await running.start()
    sums = await asyncio.gather(*(tools["add"].run({"a": n, "b": 1}) for n in range(5)))
    assert sums == ["1", "2", "3", "4", "5"]
    await running.kill()


async def test_whoever_is_cancelled_while_it_connects_leaves_it_to_the_others(
    servers: McpServers,
) -> None:
    server = stdio()
    first, second = (asyncio.create_task(servers.tools([server])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert first.cancelled()
    assert len(started()) == 1


async def test_one_that_does_not_start_is_tried_again_by_the_next(servers: McpServers) -> None:
    broken = Stdio(sys.executable, "-c", "raise SystemExit('config.toml is missing')")
    for _ in range(2):
        errors = await asyncio.gather(
            *(servers.tools([broken]) for _ in range(3)), return_exceptions=True
        )
        assert ["config.toml is missing" in str(error) for error in errors] == [True] * 3


async def test_the_end_of_the_worker_ends_servers_however_it_ends() -> None:
    ready = asyncio.Event()

    async def worker() -> None:
        async with McpServers() as shared:
            await shared.tools([stdio()])
            opening = asyncio.create_task(shared.tools([stdio()]))
            await asyncio.sleep(0.05)
            ready.set()
            await opening
            await asyncio.Event().wait()

    working = asyncio.create_task(worker())
    await ready.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert started() == []


async def test_outside_of_a_job_they_end_with_the_run(running: Running) -> None:
    client = adding(1)
    ctx = Context(client)
    for _ in range(2):
        client.replies += adding(1).replies
        assert await run_agent(adder(stdio(), Http(running.url, prefix="far_")), ctx, {}) == "done"
        assert started() == []
    names = {param["name"] for param in client.requests[0]["tools"]}
    assert {"add", "far_add", "double"} <= names


async def test_agents_within_agents_have_servers_of_their_own_and_share_them(
    servers: McpServers,
) -> None:
    inner = adder(stdio())

    @agent
    async def outer(ctx: Context, item: dict[str, Any]) -> list[str]:
        runs = await ctx.map(lambda n: ctx.run(inner, {"n": n}), range(3), concurrency=1)
        assert len(started()) == 1
        return [*runs, await ctx.ask("go")]

    replies = [each for n in range(3) for each in adding(n).replies]
    client = ScriptedClient(*replies, message("end"))
    assert await run_agent(outer, Context(client), {}) == ["done", "done", "done", "end"]
    assert started() == []
    client = adding(1)
    assert await Context(client, servers=servers).run(inner, {}) == "done"
    assert await Context(adding(2)).run(inner, {}) == "done", "outside of any agent, too"


def test_what_is_no_server_is_told() -> None:
    wrong: Any = ["uvx"]
    with pytest.raises(AgentError, match=r"'uvx' is no server; write Stdio"):
        agent(mcp=wrong)


async def test_two_tools_of_one_name_are_told(servers: McpServers) -> None:
    client = ScriptedClient(message("done"))
    with pytest.raises(AgentError, match="two tools are named add"):
        await run_agent(adder(stdio(), stdio()), Context(client, servers=servers), {})
