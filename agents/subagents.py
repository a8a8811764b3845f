"""An agent as a tool of another: `tools=[as_tool(researcher)]`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import PydanticUserError
from pydantic.errors import PydanticInvalidForJsonSchema

from agentcloud.agents.agent import Agent
from agentcloud.agents.loop import ASK_SCOPE
from agentcloud.agents.tool_base import AnyTool, ToolContent, result_content
from agentcloud.cluster.errors import AgentError, BudgetExceeded, ToolFailed


class AgentTool(AnyTool):
    """An agent that the model may run; its arguments are the agent's item.

    Args:
        agent: the agent.
        name: what the model calls it by.
        description: what it does.
        timeout_s: the longest one run may take, seconds.
    """

    is_step = False

    def __init__(self, agent: Agent[Any], name: str, description: str, timeout_s: float) -> None:
        self.name = name
        self.description = description
        self.timeout_s = timeout_s
        self.input_schema, self._wrapped = _item_schema(agent)
        self._agent = agent

    async def _run(self, arguments: Mapping[str, Any]) -> ToolContent:
        if self._scope is None:
            raise AgentError(
                f"tool {self.name} runs an agent: give it to an ask, or run the agent with ctx.run"
            )
        item = dict(arguments)
        if self._wrapped is not None and self._wrapped in item:
            item = item[self._wrapped]
        try:
            result = await self._scope.run(self._agent, item)
        except BudgetExceeded as error:
            if error.scope != ASK_SCOPE:
                raise
            # The agent's own limit, not the task's: what called it can go on.
            raise ToolFailed(
                f"{self.name} failed: {error}", tool=self.name, permanent=True
            ) from error
        return result_content(result, self.name)


def as_tool(
    agent: Agent[Any],
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float = 600.0,
) -> AgentTool:
    """Let the model run an agent within the task, as `ctx.run` does.

    The item's annotation is the schema of the arguments: the fields of a pydantic model, or one
    argument of any other type. What the agent returns is the result; what it raises goes back to
    the model, save for what ends the task (a used-up budget, no attempts left). Its calls count in
    the limits of the ask that it is a tool of.

    Args:
        agent: made by `@agent`.
        name: what the model calls it by; the agent's name by default.
        description: in place of the agent's docstring.
        timeout_s: the longest one run may take, seconds.

    Raises:
        AgentError: it has no docstring, or its item's type says nothing of what is in it.
    """
    told = description or inspect.cleandoc(agent.__doc__ or "")
    if not told:
        raise AgentError(
            f"agent {agent.name} has no docstring; say in one what it does, the model reads it"
        )
    return AgentTool(agent, name or agent.name, told, timeout_s)


def _item_schema(agent: Agent[Any]) -> tuple[dict[str, Any], str | None]:
    """The schema of the arguments; and the only argument's name where the item is no object."""
    adapter = agent.item_adapter
    try:
        schema = {} if adapter is None else adapter.json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        raise AgentError(f"agent {agent.name} as a tool: {str(error).splitlines()[0]}") from None
    defs = schema.pop("$defs", {})
    root = defs[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
    if not root or (root.get("type") == "object" and not root.get("properties")):
        raise AgentError(
            f"agent {agent.name} as a tool: its item's type says nothing of what is in it; "
            f"annotate it with a pydantic model, or with str"
        )
    shared = {"$defs": defs} if defs else {}
    if root.get("type") == "object":
        return {**root, **shared}, None
    name = agent.item_name
    wrapper = {"type": "object", "properties": {name: schema}, "required": [name]}
    return {**wrapper, "additionalProperties": False, **shared}, name
