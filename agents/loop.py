"""The agent loop: generate -> run the asked-for tools -> repeat, within limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from anthropic.types import Message, ToolUseBlock

from agentcloud.agents.concurrent import map_ordered
from agentcloud.agents.deadline import Deadline
from agentcloud.agents.fitting import Fitting
from agentcloud.agents.output import ran_away
from agentcloud.agents.ports import Sender
from agentcloud.agents.prompt import MessageDict, answer_message, answer_text
from agentcloud.agents.tool_base import AnyTool
from agentcloud.agents.usage import Usage
from agentcloud.cluster.errors import (
    AgentCloudError,
    BudgetExceeded,
    ConfigError,
    NoEndpoint,
    Refused,
    TaskError,
    ToolServerLost,
    TurnLimit,
)

#: Errors of a tool that end the whole agent: the model could not mend them.
FATAL_IN_TOOLS = (BudgetExceeded, TaskError, NoEndpoint, ConfigError, ToolServerLost)

#: Scope of a budget that only one ask has (`max_usd`).
ASK_SCOPE = "this ask"


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """Where a loop ends by force.

    Attributes:
        turns: the most answers of the model.
        tokens: the most tokens, prompts and answers together, over all turns; None: no limit.
        usd: the most money, checked after each turn; None: the budgets alone decide.
        deadline: no further turn begins after it; None: no limit.
    """

    turns: int = 20
    tokens: int | None = None
    usd: Decimal | None = None
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a loop ended: the last answer and the conversation that led to it, without it."""

    message: Message
    messages: list[MessageDict]
    max_tokens: int


async def run_loop(
    sender: Sender,
    params: Mapping[str, Any],
    *,
    tools: Mapping[str, AnyTool],
    limits: LoopLimits,
    usage: Usage,
    fitting: Fitting | None = None,
    growths: int = 2,
) -> LoopResult:
    """Call the model until it asks for no more tools.

    Args:
        sender: makes the calls.
        params: the request, its `tools` included.
        tools: functions by name.
        limits: where to stop by force.
        usage: the task's receipts, which `sender` adds to.
        fitting: shortens what is too long.
        growths: how often a cut answer is asked for again with twice the tokens.

    Raises:
        TurnLimit: the turns, the tokens or the time are used up.
        BudgetExceeded: the money of `limits` is used up.
        Refused: the model refused.
    """
    fitting = fitting or Fitting()
    messages = list(params["messages"])
    max_tokens: int = params["max_tokens"]
    calls_before = usage.calls
    for turn in range(1, limits.turns + 1):
        check_limits(limits, usage.since(calls_before))
        message, messages = await fitting.send(
            sender, {**params, "messages": messages, "max_tokens": max_tokens}
        )
        # Cases: refused; cut, perhaps inside a tool call (ask with more tokens, run nothing);
        # paused by a server tool (go on); tools asked for (run them); done.
        calls = [block for block in message.content if block.type == "tool_use"]
        if message.stop_reason == "refusal":
            raise refusal(message)
        if message.stop_reason == "max_tokens" and tools and growths:
            growths -= 1
            sender.spend_attempt("an answer that max_tokens cut off")
            max_tokens *= 2
        elif message.stop_reason == "max_tokens" and calls:
            raise TurnLimit(
                f"a call of tool {calls[-1].name} does not fit into max_tokens={max_tokens}; "
                f"raise max_tokens",
                turns=turn,
            )
        elif message.stop_reason == "pause_turn":
            messages.append(answer_message(message))
        elif message.stop_reason == "tool_use" and calls:
            messages.append(answer_message(message))
            messages.append({"role": "user", "content": await _run_tools(sender, calls, tools)})
        else:
            return LoopResult(message, messages, max_tokens)
    raise TurnLimit(
        f"the agent loop made {limits.turns} turns without an answer; raise max_turns, or give "
        f"the model fewer or clearer tools",
        turns=limits.turns,
    )


def refusal(message: Message) -> Refused:
    """The error for an answer that refuses."""
    said = answer_text(message).strip()
    receipt = getattr(message, "agentcloud", None)
    return Refused(
        f"{message.model} refused to answer{f': {said[:200]}' if said else ''}",
        endpoint=getattr(receipt, "endpoint", None),
    )


def is_cut(message: Message) -> bool:
    """Whether the answer ended because its tokens did, and more tokens would help."""
    return message.stop_reason == "max_tokens" and not ran_away(answer_text(message))


def check_limits(limits: LoopLimits, usage: Usage) -> None:
    """Refuse to go on when an ask has used its tokens, its money or its time.

    Raises:
        TurnLimit, BudgetExceeded: it has.
    """
    tokens = usage.input_tokens + usage.output_tokens
    if limits.tokens is not None and tokens >= limits.tokens:
        raise TurnLimit(
            f"the agent loop used {tokens} of its {limits.tokens} tokens without an answer; "
            f"raise max_total_tokens",
            turns=usage.calls,
        )
    if limits.usd is not None and usage.known_cost_usd >= limits.usd:
        raise BudgetExceeded(ASK_SCOPE, used_usd=usage.known_cost_usd, limit_usd=limits.usd)
    # The first call goes out however late it is: the scheduler says what is possible.
    if usage.calls and limits.deadline is not None and limits.deadline.has_passed():
        raise TurnLimit(
            f"this ask made {usage.calls} calls without an answer before its deadline; raise "
            f"deadline_s, or use faster tools or a faster tier",
            turns=usage.calls,
        )


async def _run_tools(
    sender: Sender, calls: Sequence[ToolUseBlock], tools: Mapping[str, AnyTool]
) -> list[dict[str, Any]]:
    """Run the calls at once; results in the order of the calls, failures as error results."""
    return await map_ordered(
        lambda call: _run_tool(sender, call, tools), calls, concurrency=max(1, len(calls))
    )


async def _run_tool(
    sender: Sender, call: ToolUseBlock, tools: Mapping[str, AnyTool]
) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": call.id}
    tool = tools.get(call.name)
    if tool is None:
        known = ", ".join(tools)
        return {**result, "is_error": True, "content": f"no tool {call.name!r}; tools: {known}"}
    arguments = call.input if isinstance(call.input, dict) else {}

    async def run() -> dict[str, Any]:
        try:
            return {"content": await tool.run(arguments)}
        except FATAL_IN_TOOLS:
            raise
        except AgentCloudError as error:
            return {"is_error": True, "content": str(error)}

    if not tool.is_step:
        return {**result, **await run()}
    # What the model was told stays what it was told, also of a tool that failed.
    return {**result, **await sender.record("tool", call.name, arguments, run)}
