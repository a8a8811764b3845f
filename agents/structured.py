"""Structured outputs: ask, validate, and ask again where that helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from anthropic.types import Message
from pydantic import BaseModel, ValidationError

from agentcloud.agents.fitting import Fitting
from agentcloud.agents.loop import LoopResult, is_cut, refusal
from agentcloud.agents.output import explain, output_config, parse_output
from agentcloud.agents.ports import Sender
from agentcloud.agents.prompt import answer_message, answer_text
from agentcloud.agents.usage import Usage
from agentcloud.cluster.errors import ContextTooLong, InvalidRequest, NoEndpoint, OutputInvalid

T = TypeVar("T", bound=BaseModel)


async def ask_structured(
    sender: Sender,
    params: Mapping[str, Any],
    output: type[T],
    *,
    repairs: int,
    usage: Usage,
    fitting: Fitting,
) -> T:
    """Ask for `output` until it validates.

    An invalid answer is shown to the model with what is wrong. An answer cut by `max_tokens` is
    asked for with twice the tokens, or with all that fit where twice does not: the same call again
    would be cut again. Where no more fit, that is the end; a cascade goes to its next tier.

    Args:
        sender: makes the calls.
        params: the request, without `output_config.format`.
        output: the pydantic model.
        repairs: how often to ask again; each spends one of the task's extra attempts.
        usage: the task's receipts, which `sender` adds to.
        fitting: shortens what is too long.

    Raises:
        OutputInvalid: no answer validated; carries the usage of all of them.
        Refused: the model refused.
    """
    calls_before = usage.calls
    request: dict[str, Any] = {
        **params,
        "output_config": {**params.get("output_config", {}), **output_config(output)},
    }
    message, request["messages"] = await fitting.send(sender, request)
    sent = 1

    def invalid(what: str) -> OutputInvalid:
        used = usage.since(calls_before).to_dict()
        return OutputInvalid(what, attempts=sent, usage=used)

    while True:
        # Cases: refused; valid; the context is full (nothing helps here); cut (more tokens);
        # invalid (shown to the model).
        if message.stop_reason == "refusal":
            raise refusal(message)
        try:
            parsed = parse_output(output, answer_text(message))
        except ValidationError as error:
            usage.mark_valid(message, False)
            problem = explain(error)
        else:
            usage.mark_valid(message, True)
            return parsed
        if message.stop_reason == "model_context_window_exceeded":
            raise invalid(
                f"{message.model} gave no whole {output.__name__}: its context is full; shorten "
                f"the prompt, or use a tier with a larger context"
            )
        cut = is_cut(message)
        if cut:
            problem = f"cut off at max_tokens={request['max_tokens']}; raise max_tokens"
        if sent > repairs:
            times = "once" if sent == 1 else f"{sent} times"
            first = problem.splitlines()[0]
            raise invalid(
                f"{message.model} gave no valid {output.__name__}, asked {times}; "
                f"the last problem: {first}"
            )
        sender.spend_attempt(f"output {output.__name__}", problem)
        try:
            if cut:
                message, request = await _send_longer(sender, request, message)
            else:
                added = _complaint(message, problem)
                request = {**request, "messages": [*request["messages"], *added]}
                message = await sender.send(request)
        except (InvalidRequest, NoEndpoint) as error:
            # The first request was taken, so it is what we added that is too much.
            raise invalid(
                f"no valid {output.__name__} so far ({problem.splitlines()[0]}), and asking again "
                f"failed: {error}"
            ) from error
        sent += 1


async def structure_last(
    sender: Sender,
    params: Mapping[str, Any],
    result: LoopResult,
    output: type[T],
    *,
    repairs: int,
    usage: Usage,
    fitting: Fitting,
) -> T:
    """The end of an agent loop as `output`: as it is when it validates, else by one more turn.

    Tools and a schema do not go together on every endpoint, so the loop runs without the schema
    and the last turn without the tools (they stay declared: the conversation names them).

    Raises:
        OutputInvalid: as `ask_structured`.
        Refused: as `ask_structured`.
    """
    text = answer_text(result.message)
    try:
        return parse_output(output, text)
    except ValidationError:
        told = f"Now give the final answer as JSON: a {output.__name__}."
    closing = {"role": "user", "content": told}
    messages = [*result.messages, *([answer_message(result.message)] if text.strip() else [])]
    if messages[-1]["role"] == "user":  # a user message follows: roles must alternate
        messages.append({"role": "assistant", "content": "(done)"})
    request = {
        **params,
        "messages": [*messages, closing],
        "max_tokens": result.max_tokens,
        "tool_choice": {"type": "none"},
    }
    return await ask_structured(
        sender, request, output, repairs=repairs, usage=usage, fitting=fitting
    )


async def _send_longer(
    sender: Sender, request: dict[str, Any], cut: Message
) -> tuple[Message, dict[str, Any]]:
    """Ask with twice the tokens, or with all that the context holds where that is less."""
    had: int = request["max_tokens"]
    longer = {**request, "max_tokens": had * 2}
    try:
        return await sender.send(longer), longer
    except ContextTooLong as error:
        # The prompt is as long as it was when the first answer was made.
        used = cut.usage
        prompt = used.input_tokens + (used.cache_read_input_tokens or 0)
        prompt += used.cache_creation_input_tokens or 0
        fits = (error.context_tokens or 0) - prompt
        if not had < fits < had * 2:
            raise
    longest = {**request, "max_tokens": fits}
    return await sender.send(longest), longest


def _complaint(message: Message, problem: str) -> list[dict[str, Any]]:
    answer = answer_message(message)
    if not answer_text(message).strip():  # the API takes no empty text
        answer = {"role": "assistant", "content": "(no answer)"}
    told = f"That answer is not valid:\n{problem}\nAnswer again, with valid JSON only."
    return [answer, {"role": "user", "content": told}]
