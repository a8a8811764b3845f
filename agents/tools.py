"""`@tool`: a function that the model may call; its schema comes from signature and docstring."""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, NotRequired, ParamSpec, TypeVar, overload

import anthropic
import docstring_parser
from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from agentcloud.agents.output import explain
from agentcloud.agents.tool_base import AnyTool, ToolContent, result_content
from agentcloud.cluster.errors import AgentError, ToolFailed

P = ParamSpec("P")
R = TypeVar("R")

# Called with fields known only at run time, which static checkers refuse for TypedDict itself.
_make_typed_dict: Callable[[str, dict[str, Any]], Any] = typing.cast(Any, TypedDict)


class Tool(AnyTool, Generic[P, R]):
    """A function as the model sees it. Calling it runs the plain function.

    Its description is the docstring's unless given, its schema the signature's. A result that is
    text or content blocks is told as it is, anything else as JSON.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout_s: float = 60.0,
        strict: bool = False,
        retries: int = 0,
    ) -> None:
        functools.update_wrapper(self, function)
        docstring = docstring_parser.parse(inspect.getdoc(function) or "")
        self._function = function
        self.name = name or function.__name__
        self.description = description or docstring.description or ""
        self.timeout_s = timeout_s
        self.strict = strict
        self.retries = retries
        if retries < 0:
            raise AgentError(f"tool {self.name}: retries cannot be negative: {retries}")
        if not self.description:
            raise AgentError(
                f"tool {self.name} has no docstring; say in one what it does, the model reads it"
            )
        told = {param.arg_name: param.description or "" for param in docstring.params}
        self._arguments = _arguments_adapter(function, self.name, told)
        self.input_schema = _schema(self._arguments, strict=strict)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the plain function, without validation or timeout."""
        return self._function(*args, **kwargs)

    async def _run(self, arguments: Mapping[str, Any]) -> ToolContent:
        try:
            values = self._arguments.validate_python(dict(arguments))
        except ValidationError as error:
            raise ToolFailed(
                f"wrong arguments for {self.name}: {explain(error)}",
                tool=self.name,
                permanent=True,
            ) from None
        return result_content(await self._call(values), self.name)

    async def _call(self, values: Mapping[str, Any]) -> object:
        function: Callable[..., Any] = self._function
        if inspect.iscoroutinefunction(function):
            return await function(**values)
        # A thread cannot be stopped: after a timeout the function runs on, and its result is lost.
        return await asyncio.to_thread(functools.partial(function, **values))


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float = 60.0,
    strict: bool = False,
    retries: int = 0,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float = 60.0,
    strict: bool = False,
    retries: int = 0,
) -> Tool[P, R] | Callable[[Callable[P, R]], Tool[P, R]]:
    """Make a function callable by the model.

    The description comes from the docstring, each argument's from its `Args:` section or from
    `Annotated[..., Field(description=...)]`. What the function raises, and wrong arguments, go
    back to the model as an error result, so that it can try something else.

    Args:
        function: sync (run in a thread) or async, with annotated arguments.
        name: what the model calls it by; the function's name by default.
        description: in place of the docstring's.
        timeout_s: the longest one call may take, seconds.
        strict: hold the model to the schema where the endpoint can; the arguments then obey the
            limits of structured outputs (no dicts, no recursion).
        retries: how often a call that fails or times out is made again before the model sees the
            failure; only for functions that may run twice. Each spends one of the task's extra
            attempts.

    Raises:
        AgentError: an argument has no usable type, or there is no description.
    """

    def wrap(function: Callable[P, R]) -> Tool[P, R]:
        return Tool(
            function,
            name=name,
            description=description,
            timeout_s=timeout_s,
            strict=strict,
            retries=retries,
        )

    return wrap if function is None else wrap(function)


def _arguments_adapter(
    function: Callable[..., Any], name: str, told: Mapping[str, str]
) -> TypeAdapter[dict[str, Any]]:
    """A validator of the arguments as one typed dict: unlike a model it may hold any name."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise AgentError(
            f"tool {name}: {error}; annotations must name types of the module's top level"
        ) from None
    fields: dict[str, Any] = {}
    for param in inspect.signature(function).parameters.values():
        if param.kind not in (param.KEYWORD_ONLY, param.POSITIONAL_OR_KEYWORD):
            raise AgentError(f"tool {name}: argument {param.name} must be a plain named argument")
        if param.name not in hints:
            raise AgentError(f"tool {name}: argument {param.name} has no type; annotate it")
        hint = _described(hints[param.name], told.get(param.name))
        fields[param.name] = hint if param.default is param.empty else NotRequired[hint]
    arguments = _make_typed_dict(name, fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        return TypeAdapter(arguments)
    except PydanticUserError as error:
        raise AgentError(f"tool {name}: {error.message.splitlines()[0]}") from None


def _described(hint: Any, description: str | None) -> Any:
    said = any(getattr(extra, "description", None) for extra in getattr(hint, "__metadata__", ()))
    return Annotated[hint, Field(description=description)] if description and not said else hint


def _schema(arguments: TypeAdapter[dict[str, Any]], *, strict: bool) -> dict[str, Any]:
    schema = arguments.json_schema()
    schema.pop("title", None)
    for part in schema.get("properties", {}).values():
        part.pop("title", None)
    return anthropic.transform_schema(schema) if strict else schema
