"""`ctx.approve`: a person decides, and until then the task holds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from agentcloud.agents.calls import Calls
from agentcloud.cluster.errors import AgentError, Parked


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person decided.

    Attributes:
        approved: whether to go on.
        comment: what was said with it; may be empty.
        by: who decided, as they called themselves.
    """

    approved: bool
    comment: str = ""
    by: str = ""


APPROVAL: Final = TypeAdapter(Approval)


async def approval(calls: Calls, question: str, details: Any) -> Approval:
    """The recorded decision.

    Raises:
        Parked: there is none yet.
        AgentError: `details` is no JSON.
    """
    try:
        content = to_jsonable_python({"question": question, "details": details})
    except PydanticSerializationError as error:
        raise AgentError(f"approve: details are no JSON: {error}") from None

    async def ask(step: str | None) -> Any:
        if step is None:
            raise AgentError(
                "approve: nobody can be asked outside of a job; run the agent with `agentcloud run`"
            )
        raise Parked(step, question, content["details"])

    return APPROVAL.validate_python(await calls.record_as("approval", "approve", content, ask))
