"""`@agent`: an async function of `(ctx, item)` that jobs run on every input."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, overload

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from agentcloud.agents.cascade import Cascade
from agentcloud.agents.context import Context
from agentcloud.agents.defaults import Defaults
from agentcloud.agents.fitting import LongContext, check_long_context
from agentcloud.agents.load import load_object
from agentcloud.agents.mcp_servers import McpServer
from agentcloud.agents.tool_base import AnyTool, index_tools
from agentcloud.cluster.errors import AgentError

__all__ = ["Agent", "Context", "agent", "load_agent", "run_agent"]

_DEFAULTS = Defaults()

R = TypeVar("R")
Function: TypeAlias = Callable[[Context, Any], Awaitable[R]]


class Agent(Generic[R]):
    """An async function of `(ctx, item)` with its settings.

    Calling it runs the function with the item validated; `run_agent` also applies the settings.

    Attributes:
        name: what logs and results call it.
        defaults: what its asks use that do not say it themselves.
    """

    def __init__(
        self, function: Function[R], *, name: str | None = None, defaults: Defaults | None = None
    ) -> None:
        functools.update_wrapper(self, function)
        self.name: str = name or function.__name__
        self.defaults = defaults or Defaults()
        self._function = function
        if not inspect.iscoroutinefunction(function):
            raise AgentError(f"agent {self.name} is not async; write `async def {self.name}`")
        parameters = list(inspect.signature(function).parameters.values())
        required = [p for p in parameters if p.default is p.empty]
        if len(parameters) < 2 or len(required) > 2:
            taken = ", ".join(p.name for p in parameters)
            raise AgentError(f"agent {self.name} takes ({taken}); write (ctx, item)")
        self._item = parameters[1]

    def __repr__(self) -> str:
        return f"<agent {self.name}>"

    async def __call__(self, ctx: Context, item: Any) -> R:
        """Validate the item and run the function.

        Raises:
            AgentError: the item is not of the agent's type, or the agent tried to end the process.
        """
        try:
            return await self._function(ctx, self.validate(item))
        except SystemExit as error:
            # It would end the worker with every other task in it.
            raise AgentError(
                f"agent {self.name} called exit({error.code}); return or raise instead"
            ) from error

    @property
    def item_name(self) -> str:
        """What the function calls its item."""
        return self._item.name

    def validate(self, item: Any) -> Any:
        """The item as the function's annotation wants it.

        Raises:
            AgentError: it is not of that type, in one line that names the first wrong field.
        """
        adapter = self.item_adapter
        if adapter is None:
            return item
        try:
            return adapter.validate_python(item)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the item"
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise AgentError(
                f"agent {self.name}: bad input: {where}: {first['msg']}{more}"
            ) from None

    @functools.cached_property
    def item_adapter(self) -> TypeAdapter[Any] | None:
        """Validator of items; None when the annotation says nothing.

        Raises:
            AgentError: the annotation cannot be resolved or validated against.
        """
        annotation = self._item.annotation
        if annotation is inspect.Parameter.empty:
            return None
        holder = type("Item", (), {"__annotations__": {"item": annotation}})
        module = getattr(self._function, "__globals__", {})
        try:
            hint = typing.get_type_hints(holder, globalns=module, include_extras=True)["item"]
            return None if hint in (Any, object) else TypeAdapter(hint)
        except (NameError, PydanticUserError) as error:
            reason = str(error).splitlines()[0]
            raise AgentError(
                f"agent {self.name}: type {annotation!r} of {self._item.name} cannot be used: "
                f"{reason}; annotate it with dict or a pydantic model of the module's top level"
            ) from None


@overload
def agent(function: Function[R], /) -> Agent[R]: ...
@overload
def agent(
    *,
    name: str | None = None,
    tier: str | Cascade = ...,
    max_tokens: int = ...,
    tools: Sequence[AnyTool] = (),
    max_turns: int = ...,
    long_context: LongContext = ...,
    mcp: Sequence[McpServer] = (),
    cache: bool | None = None,
) -> Callable[[Function[R]], Agent[R]]: ...
def agent(
    function: Function[R] | None = None,
    /,
    *,
    name: str | None = None,
    tier: str | Cascade = _DEFAULTS.tier,
    max_tokens: int = _DEFAULTS.max_tokens,
    tools: Sequence[AnyTool] = (),
    max_turns: int = _DEFAULTS.max_turns,
    long_context: LongContext = _DEFAULTS.long_context,
    mcp: Sequence[McpServer] = (),
    cache: bool | None = None,
) -> Agent[R] | Callable[[Function[R]], Agent[R]]:
    """Make an async function of `(ctx, item)` an agent that jobs can run.

    The item is an input row: a `dict`, or the pydantic model that the annotation names, validated
    before the function runs.

    Args:
        function: the async function.
        name: what logs and results call it; the function's name by default.
        tier: tier, model or cascade of its asks, unless they say another; `auto`: cheap first.
        max_tokens: the most tokens of an answer, unless an ask says another.
        tools: functions that the model may call, unless an ask says others.
        max_turns: the most answers of one agent loop.
        long_context: what becomes of the oldest turns of a conversation that the model's context
            does not hold, unless an ask says otherwise: `truncate` drops them, `summarise` asks
            the model for a summary in their place.
        mcp: servers (`Stdio(...)`, `Http(...)`) whose tools the model may call besides `tools`,
            unless an ask says others. A worker connects each once, at the first ask that needs
            it, for all its tasks, and again after it was lost.
        cache: whether fleet.yaml's `cache:` may answer its asks, unless one says otherwise; None:
            where the temperature is 0. True takes sampled answers too: equal items get one answer.

    Raises:
        AgentError: the function is not async, or does not take `(ctx, item)`; or `long_context`
            is neither; or `mcp` holds something else.
    """
    index_tools(tools)
    fitted = check_long_context(long_context)
    for server in mcp:
        if not isinstance(server, McpServer):
            raise AgentError(f"mcp: {server!r} is no server; write Stdio(...) or Http(...)")
    defaults = Defaults(tier, max_tokens, tuple(tools), max_turns, fitted, tuple(mcp), cache)

    def wrap(function: Function[R]) -> Agent[R]:
        return Agent(function, name=name, defaults=defaults)

    return wrap if function is None else wrap(function)


async def run_agent(agent: Agent[R], context: Context, item: Any) -> R:
    """Run an agent on one item with its settings; what it raises comes through as it is.

    MCP servers that the context does not share with others are ended with it.

    Raises:
        AgentError: the item is not of the agent's type, or the agent tried to end the process.
    """
    context.defaults = agent.defaults
    context.path = (agent.name,)
    context.log = context.log.bind(agent=agent.name)
    async with context.serving():
        return await agent(context, item)


def load_agent(target: str) -> Agent[Any]:
    """Import an agent from `path/to/file.py:name` or `package.module:name`.

    Raises:
        ConfigError: no such file, module or name, or it is not an agent.
        AgentError: the module raises when imported, or its item type cannot be used.
    """
    found = load_object(target, Agent, what="agent", remedy="decorate it with @agent")
    found.item_adapter  # noqa: B018 - resolves the type now, not at the first of many tasks
    return found
