"""Whatever a model answers: no request is sent twice, nothing that was used is lost."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agentcloud.agents import Context
from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.errors import (
    AgentCloudError,
    AttemptsExhausted,
    ContextTooLong,
    InvalidRequest,
    OutputInvalid,
    Refused,
)
from tests.agents.fakes import Reply, ScriptedClient, message


class Rating(BaseModel):
    stars: int = Field(le=5)


REPLIES: list[Reply] = [
    message('{"stars": 5}'),
    message('{"stars": 6}'),
    message(""),
    message("Sure!"),
    message('{"sta', stop_reason="max_tokens"),
    message("", stop_reason="max_tokens"),
    message('{"stars":' + " " * 99, stop_reason="max_tokens"),
    message('{"sta', stop_reason="model_context_window_exceeded"),
    message("I will not.", stop_reason="refusal"),
    ContextTooLong("too long", context_tokens=200),
    InvalidRequest("max_tokens: too many"),
]
ENDS = (OutputInvalid, Refused, AttemptsExhausted, ContextTooLong, InvalidRequest)


@given(st.lists(st.sampled_from(REPLIES), min_size=9, max_size=9), st.integers(0, 6))
def test_no_call_is_made_twice_and_no_usage_lost(replies: list[Reply], attempts: int) -> None:
    client = ScriptedClient(*replies)
    ctx = Context(client, attempts=Attempts(attempts))
    ended: Rating | AgentCloudError
    try:
        ended = asyncio.run(ctx.ask("rate it", output=Rating, repairs=4, max_tokens=100))
    except ENDS as error:
        ended = error
    # Cases: valid; no valid answer; any other error.
    if isinstance(ended, Rating):
        assert ended.stars == 5
    else:
        assert ended.spent == ctx.usage.to_dict()
        if isinstance(ended, OutputInvalid):
            assert (ended.usage, ended.attempts) == (ended.spent, ctx.usage.calls)
    sent = [json.dumps(request, sort_keys=True) for request in client.requests]
    assert len(set(sent)) == len(sent)
    answered = sum(not isinstance(reply, Exception) for reply in replies[: len(sent)])
    assert ctx.usage.calls == answered
    assert answered <= 1 + attempts
