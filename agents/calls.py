"""A task's calls: recorded answers first, our errors, every receipt and attempt counted."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import anthropic
from anthropic.types import Message

from agentcloud.agents.attempts import Attempts
from agentcloud.agents.deadline import Deadline
from agentcloud.agents.ports import MessagesClient
from agentcloud.agents.prompt import answer_text
from agentcloud.agents.usage import Usage
from agentcloud.cluster.contracts import (
    Escalation,
    Routing,
)
from agentcloud.cluster.errors import BackendError
from agentcloud.cluster.ports import StepRecorder


class Calls:
    """Makes the calls of one task.

    Args:
        client: sends them.
        recorder: answers recorded by an earlier attempt, used in place of calls.
        attempts: the task's budget of extra attempts; transport retries spend it too.
        usage: takes the receipts.
    """

    def __init__(
        self,
        client: MessagesClient,
        recorder: StepRecorder | None,
        attempts: Attempts,
        usage: Usage,
    ) -> None:
        self.attempts = attempts
        self.usage = usage
        self._client = client
        self._recorder = recorder

    def counted_in(self, usage: Usage) -> Calls:
        """The same calls, whose receipts go to `usage`."""
        ours = copy.copy(self)
        ours.usage = usage
        return ours

    async def create(
        self, params: dict[str, Any], routing: Routing, escalated: Escalation | None = None
    ) -> Message:
        """One answer; `BackendError` rather than anthropic's exception where we have one."""
        step = await self._recorder.begin(params) if self._recorder else None
        if step is not None and step.answer is not None:
            return self._count(step.answer, escalated)
        with self._our_errors():
            message = await self._client.messages.create(routing=self._counted(routing), **params)
        if self._recorder is not None and step is not None:
            await self._recorder.done(step, message)
        return self._count(message, escalated)

    async def stream(
        self, params: dict[str, Any], routing: Routing
    ) -> AsyncGenerator[str | Message, None]:
        """The pieces of an answer's text as they come, and at last the whole answer."""
        step = await self._recorder.begin(params) if self._recorder else None
        if step is not None and step.answer is not None:
            yield answer_text(step.answer)
            yield self._count(step.answer)
            return
        with self._our_errors():
            async with self._client.messages.stream(
                routing=self._counted(routing), **params
            ) as stream:
                async for text in stream.text_stream:
                    yield text
                message = await stream.get_final_message()
        if self._recorder is not None and step is not None:
            await self._recorder.done(step, message)
        yield self._count(message)

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        """Raise the `BackendError` behind anthropic's exception: it says more, and pickles."""
        try:
            yield
        except (anthropic.APIError, BackendError) as raised:
            error = raised if isinstance(raised, BackendError) else raised.__cause__
            if not isinstance(error, BackendError):
                raise
            raise error from error.__cause__

    def _counted(self, routing: Routing) -> Routing:
        return replace(routing, extra_sends=self.attempts)

    def _count(self, message: Message, escalated: Escalation | None = None) -> Message:
        receipt = getattr(message, "agentcloud", None)
        if receipt is not None:
            self.usage.add(replace(receipt, escalated=escalated) if escalated else receipt)
        return message


@dataclass(slots=True)
class RoutedSender:
    """Calls with one routing: the `Sender` of loops and structured outputs.

    Attributes:
        deadline: when the ask should be done: each call is told what is left of it.
        escalated: why these calls are made at all; the first one's receipt says it.
    """

    calls: Calls
    routing: Routing
    deadline: Deadline
    escalated: Escalation | None = None

    async def send(self, params: dict[str, Any]) -> Message:
        """Send a request and wait for its answer."""
        escalated, self.escalated = self.escalated, None
        routing = replace(self.routing, deadline_s=self.deadline.left_s())
        return await self.calls.create(params, routing, escalated)

    def spend_attempt(self, why: str, last: str | None = None) -> None:
        """Spend one of the task's extra attempts."""
        self.calls.attempts.spend(why, last=last)
