"""One ask of an agent: of one tier, or of a cascade's; with tools, or for a typed answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anthropic.types import Message
from pydantic import BaseModel

from agentcloud.agents.cascade import Cascade
from agentcloud.agents.escalate import CascadeAsk, TierSender, ask_cascade
from agentcloud.agents.fitting import Fitting
from agentcloud.agents.loop import LoopLimits, check_limits, run_loop
from agentcloud.agents.ports import Sender
from agentcloud.agents.prompt import answer_text
from agentcloud.agents.structured import ask_structured, structure_last
from agentcloud.agents.tool_base import AnyTool
from agentcloud.agents.usage import Usage
from agentcloud.cluster.errors import AgentError


@dataclass(frozen=True, slots=True)
class Asking:
    """What an ask has settled before its first call.

    Attributes:
        output: pydantic model of the answer; None: text.
        tools: by name, those that the model may call.
        repairs: how often to ask again for a valid `output`.
        usage: receipts of this ask's calls.
        fitting: what becomes of a conversation that is too long.
        log: logger with the task's ids bound.
    """

    output: type[BaseModel] | None
    tools: Mapping[str, AnyTool]
    limits: LoopLimits
    repairs: int
    usage: Usage
    fitting: Fitting
    log: Any

    async def of_tier(self, sender: Sender, request: dict[str, Any]) -> Any:
        """Ask one tier; the text, or an object of `output`."""
        output, repairs, usage, fitting = self.output, self.repairs, self.usage, self.fitting
        if self.tools:
            request = {**request, "tools": [tool.to_param() for tool in self.tools.values()]}
        elif output is not None:
            return await ask_structured(
                sender, request, output, repairs=repairs, usage=usage, fitting=fitting
            )
        result = await run_loop(
            sender, request, tools=self.tools, limits=self.limits, usage=usage, fitting=fitting
        )
        if output is not None:
            return await structure_last(
                sender, request, result, output, repairs=repairs, usage=usage, fitting=fitting
            )
        warn_if_cut(self.log, result.message, result.max_tokens)
        return answer_text(result.message)

    async def of_cascade(
        self, cascade: Cascade, sender: TierSender, request: dict[str, Any]
    ) -> Any:
        """Ask its tiers in order until an answer is good enough.

        Raises:
            AgentError: the ask has tools.
        """
        if self.tools:
            raise AgentError(
                f"ask: {cascade!r} with tools would run them once for each tier; name one tier, "
                f"or check the answer in a second ask with tools=[]"
            )

        def before_tier() -> None:
            check_limits(self.limits, self.usage)

        asked = CascadeAsk(request, self.output, sender, self.of_tier, self.usage, before_tier)
        return await ask_cascade(cascade, asked)


def warn_if_cut(log: Any, message: Message, max_tokens: int) -> None:
    """Say in the log that `max_tokens`, or the model's context, cut a text off."""
    if message.stop_reason in ("max_tokens", "model_context_window_exceeded"):
        log.warning("answer cut off", stop_reason=message.stop_reason, max_tokens=max_tokens)
