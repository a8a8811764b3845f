"""`ctx.step`: a function whose result is recorded: it runs once, however often its task does."""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from agentcloud.agents.calls import Calls
from agentcloud.cluster.errors import AgentError


async def run_step(
    calls: Calls,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    name: str | None,
) -> Any:
    """Run a function as a step of the task, or give what is recorded of it.

    Args:
        calls: the task's.
        function: async, or sync (run in a thread).
        args: its arguments, JSON-able.
        kwargs: the same by name.
        name: of the step; None: the function's.

    Returns:
        What the function returned, as JSON gives it back: an object of the type that it is
        annotated to return.

    Raises:
        AgentError: it has no name, or what it takes or returns is no JSON.
    """
    step = name or getattr(function, "__qualname__", "")
    if not step or "<lambda>" in step:
        raise AgentError(
            f"step: {function!r} has no name of its own; say name=, it tells this step from others"
        )

    async def make() -> Any:
        if inspect.iscoroutinefunction(function):
            value = await function(*args, **kwargs)
        else:
            value = await asyncio.to_thread(functools.partial(function, *args, **kwargs))
        return _jsonable(value, f"step {step} returned {type(value).__name__}")

    given = {"args": list(args), "kwargs": dict(kwargs)}
    content = _jsonable(given, f"step {step} is given")
    answer = await calls.record("step", step, content, make)
    adapter = _returns(function)
    return answer if adapter is None else adapter.validate_python(answer)


def _jsonable(value: Any, what: str) -> Any:
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise AgentError(f"{what}, which is no JSON: {error}") from None


@functools.lru_cache(maxsize=1024)
def _returns(function: Callable[..., Any]) -> TypeAdapter[Any] | None:
    """What makes a function's result of JSON; None where its annotation says nothing usable."""
    try:
        hint = typing.get_type_hints(function).get("return", Any)
        return None if hint in (Any, object) else TypeAdapter(hint)
    except (NameError, TypeError, PydanticUserError):
        return None
