"""Answers made up from the hash of the request: equal requests, equal answers.

- Tools: `tool_choice` `any` calls the first tool and `tool` the one named. Otherwise a tool is
  called if the last turn is the user's own text (no tool result in it) and names it; underscores
  may be spaces. The word "tool" alone calls the first one. Several named tools are all called,
  unless parallel use is disabled. Input conforms to the tool's schema.
- A requested JSON schema is met by an instance of it.
- Anything else is answered with words, marked `[synthetic …]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pydantic_core import to_json

from agentcloud.cluster.sandbox import counting
from agentcloud.cluster.sandbox.answers import (
    Answer,
    Block,
    Call,
    assemble,
    cut,
    text_block,
    tool_block,
)
from agentcloud.cluster.sandbox.instances import WORDS, make_instance


class SyntheticResponder:
    """Answers without a model; see the module for its rules."""

    def __init__(self, answer_tokens: int = 32) -> None:
        self._answer_tokens = answer_tokens

    async def respond(self, call: Call) -> Answer:
        """Answer one call."""
        rng = Random(call.digest[:8])  # noqa: S311 - words, not secrets
        params = call.params
        blocks: list[Block] = []
        if call.thinks:
            blocks.append(_thinking(call, rng))
        uses = _tools_to_call(params)
        if uses:
            blocks.extend(_tool_use(call, index, tool, rng) for index, tool in enumerate(uses))
            answer = assemble(blocks, "tool_use", ())
        else:
            form = (params.get("output_config") or {}).get("format")
            text = _json_text(form["schema"], rng) if form else self._words(call, rng)
            blocks.append(text_block(text))
            answer = assemble(blocks, "end_turn", params.get("stop_sequences") or ())
        if answer.output_tokens > call.output_budget_tokens:
            return cut(answer, call.output_budget_tokens, "max_tokens")
        return answer

    def _words(self, call: Call, rng: Random) -> str:
        head = f"[synthetic {call.model} {call.digest[:4].hex()}] "
        size = self._answer_tokens * counting.CHARS_PER_TOKEN
        text = head + " ".join(rng.choices(WORDS, k=size // 4))
        return text[: size - 1] + "." if len(text) >= size else text


def _thinking(call: Call, rng: Random) -> Block:
    text = f"[synthetic thinking] {' '.join(rng.choices(WORDS, k=8))}."
    tokens = counting.text_tokens(text)
    # Hidden thinking costs what it would cost shown.
    shown = "" if call.hides_thinking else text
    signature = call.signer.sign(shown, call.digest[8:16])
    return Block("thinking", shown, {"signature": signature}, tokens)


def _tool_use(call: Call, index: int, tool: Mapping[str, Any], rng: Random) -> Block:
    use_id = f"toolu_{call.digest[16:26].hex()}{index:02d}"
    schema = tool.get("input_schema") or {"type": "object"}
    return tool_block(use_id, tool["name"], _json_text(schema, rng))


def _json_text(schema: Mapping[str, Any], rng: Random) -> str:
    return to_json(make_instance(schema, rng)).decode()


def _tools_to_call(params: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    tools = [tool for tool in params.get("tools") or () if "input_schema" in tool]
    choice = params.get("tool_choice") or {"type": "auto"}
    if not tools or choice["type"] == "none":
        return ()
    if choice["type"] == "any":
        return tools[:1]
    if choice["type"] == "tool":
        return [tool for tool in tools if tool["name"] == choice["name"]]
    text = _own_text(params["messages"][-1])
    if text is None:
        return ()
    named = [tool for tool in tools if _names(text, tool["name"])]
    if not named and re.search(r"\btools?\b", text):
        named = tools[:1]
    return named[:1] if choice.get("disable_parallel_tool_use") else named


def _own_text(message: Mapping[str, Any]) -> str | None:
    """The text of a user's turn in lower case; None for other turns and for tool results."""
    if message["role"] != "user":
        return None
    content = message["content"]
    if isinstance(content, str):
        return content.lower()
    if any(block["type"] == "tool_result" for block in content):
        return None
    return "\n".join(block["text"] for block in content if block["type"] == "text").lower()


def _names(text: str, tool_name: str) -> bool:
    name = tool_name.lower()
    return any(
        re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text)
        for form in {name, name.replace("_", " ")}
    )
