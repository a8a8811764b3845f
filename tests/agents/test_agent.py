"""`@agent`, `run_agent` and `load_agent`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentcloud.agents import Agent, Context, agent, load_agent, run_agent, tool
from agentcloud.cluster.errors import AgentCloudError, AgentError, ConfigError
from tests.agents.fakes import ScriptedClient, message


class Ticket(BaseModel):
    text: str
    priority: int = 0


@agent
async def shout(ctx: Context, item: dict[str, Any]) -> str:
    return str(item["text"]).upper()


@agent(name="typed", tier="large", max_tokens=99)
async def typed(ctx: Context, item: Ticket) -> tuple[str, str]:
    return item.text, await ctx.ask(item.text)


@agent
async def failing(ctx: Context, item: dict[str, Any]) -> None:
    raise KeyError("text")


@agent
async def leaving(ctx: Context, item: dict[str, Any]) -> None:
    sys.exit(3)


@pytest.fixture(autouse=True)
def _imports_undone() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("agentcloud_user_") or name == "helper_beside":
            del sys.modules[name]


async def test_a_row_passes_through() -> None:
    assert await run_agent(shout, Context(ScriptedClient()), {"text": "a"}) == "A"
    assert (shout.name, repr(shout)) == ("shout", "<agent shout>")


async def test_items_are_validated_and_settings_apply() -> None:
    client = ScriptedClient(message("fine"))
    assert await run_agent(typed, Context(client), {"text": "a"}) == ("a", "fine")
    assert (client.requests[0]["model"], client.requests[0]["max_tokens"]) == ("large", 99)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({}, "agent typed: bad input: text: Field required"),
        ({"text": 1, "priority": "x"}, r"bad input: text: .*string \(and 1 more\)"),
        ("word", "bad input: the item: "),
    ],
)
async def test_a_bad_item_is_one_line_and_no_call(item: Any, words: str) -> None:
    client = ScriptedClient()
    with pytest.raises(AgentError, match=words) as caught:
        await run_agent(typed, Context(client), item)
    assert "\n" not in str(caught.value)
    assert client.requests == []


async def test_a_dict_agent_refuses_other_rows() -> None:
    with pytest.raises(AgentError, match=r"agent shout: bad input: the item: .*dictionary"):
        await run_agent(shout, Context(ScriptedClient()), [1])


async def test_what_an_agent_raises_comes_through() -> None:
    with pytest.raises(KeyError, match="text"):
        await run_agent(failing, Context(ScriptedClient()), {})


async def test_an_agent_cannot_end_the_worker() -> None:
    with pytest.raises(AgentError, match=r"agent leaving called exit\(3\)"):
        await run_agent(leaving, Context(ScriptedClient()), {})


def test_what_is_no_agent_is_refused() -> None:
    with pytest.raises(AgentError, match="write `async def plain`"):

        @agent
        def plain(ctx: Context, item: dict[str, Any]) -> Any: ...

    with pytest.raises(AgentError, match=r"takes \(ctx\); write \(ctx, item\)"):

        @agent  # type: ignore[arg-type]  # the mistake under test
        async def one(ctx: Context) -> None: ...


async def test_tools_of_the_agent_are_declared() -> None:
    @tool
    def clock() -> str:
        """What time it is."""
        return "noon"

    @agent(tools=[clock])
    async def asks(ctx: Context, item: dict[str, Any]) -> str:
        return await ctx.ask("when?")

    client = ScriptedClient(message("noon"))
    await run_agent(asks, Context(client), {})
    assert [t["name"] for t in client.requests[0]["tools"]] == ["clock"]


GOOD_FILE = """
from __future__ import annotations
from agentcloud.agents import Context, agent
from pydantic import BaseModel
import helper_beside

@agent
async def triage(ctx: Context, item: Later) -> str:
    return item.text + helper_beside.MARK

class Later(BaseModel):
    text: str

plain = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside.py").write_text("MARK = '!'\n")
    path = tmp_path / "my_agents.py"
    path.write_text(GOOD_FILE)
    return path


async def test_load_from_a_file_with_its_neighbours(file: Path) -> None:
    loaded = load_agent(f"{file}:triage")
    assert isinstance(loaded, Agent)
    assert await run_agent(loaded, Context(ScriptedClient()), {"text": "a"}) == "a!"
    assert load_agent(f"{file}:triage") is loaded


def test_an_edited_file_is_loaded_again(file: Path) -> None:
    before = load_agent(f"{file}:triage")
    file.write_text(GOOD_FILE + "\n# edited\n")
    assert load_agent(f"{file}:triage") is not before


def test_load_from_a_module() -> None:
    assert load_agent("tests.agents.test_agent:shout").name == "shout"


def test_loading_errors_are_one_line_with_a_remedy(file: Path, tmp_path: Path) -> None:
    def written(name: str, source: str) -> str:
        path = tmp_path / name
        path.write_text(source)
        return str(path)

    raising = written("raising.py", "x = 1\nraise ValueError('broken\\nbadly')\n")
    exiting = written("exiting.py", "import sys\nsys.exit(2)\n")
    needing = written("needing.py", "\nimport no_such_package_at_all\n")
    syntax = written("syntax.py", "def f(:\n")
    empty = written("empty.py", "")
    local = written(
        "local.py",
        "from __future__ import annotations\nfrom agentcloud.agents import agent\n"
        "@agent\nasync def a(ctx, item: Nowhere): ...\n",
    )
    missing = tmp_path / "missing.py"
    cases: list[tuple[str, type[AgentCloudError], str]] = [
        (f"{missing}:triage", ConfigError, f"{missing}: cannot read it (No such file"),
        (f"{file}:triag", ConfigError, f"{file}: no agent 'triag'; did you mean 'triage'?"),
        (f"{file}:xyz", ConfigError, "it has: triage"),
        (
            f"{file}:plain",
            ConfigError,
            "'plain' is no agent but of type int; decorate it with @agent",
        ),
        (f"{empty}:xyz", ConfigError, "it has no agents; decorate it with @agent"),
        (f"{file}", ConfigError, "write path/to/file.py:name"),
        ("no_such_module_here:x", ConfigError, "no module 'no_such_module_here'"),
        (f"{raising}:x", AgentError, f"{raising}:2: cannot be imported: ValueError: broken"),
        (f"{exiting}:x", AgentError, f"{exiting}:2: cannot be imported: SystemExit: 2"),
        (f"{needing}:x", AgentError, f"{needing}:2: cannot be imported: ModuleNotFoundError"),
        (f"{syntax}:x", AgentError, f"{syntax}:1: cannot be imported: SyntaxError"),
        (f"{local}:a", AgentError, "agent a: type 'Nowhere' of item cannot be used"),
    ]
    for target, kind, words in cases:
        with pytest.raises(kind) as caught:
            load_agent(target)
        assert words in str(caught.value), target
        assert "\n" not in str(caught.value), target
