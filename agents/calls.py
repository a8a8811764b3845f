"""A task's calls: recorded answers first, our errors, every receipt and attempt counted."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import anthropic
from anthropic.types import Message
from pydantic_core import from_json, to_json

from agentcloud.agents.attempts import Attempts
from agentcloud.agents.deadline import Deadline
from agentcloud.agents.ports import MessagesClient
from agentcloud.agents.prompt import answer_text
from agentcloud.agents.record import from_record, to_record, too_long_record
from agentcloud.agents.usage import Usage
from agentcloud.cluster.contracts import (
    Escalation,
    Routing,
)
from agentcloud.cluster.errors import BackendError, ContextTooLong
from agentcloud.cluster.ports import Step, StepRecorder


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
        self,
        params: dict[str, Any],
        routing: Routing,
        escalated: Escalation | None = None,
        keep_too_long: Callable[[ContextTooLong], bool] | None = None,
    ) -> Message:
        """One answer; `BackendError` rather than anthropic's exception where we have one."""
        async with self._step("model", params) as step:
            recorded = None if step is None else step.recorded
            answer: Message | ContextTooLong | None = None
            if recorded is None:
                answer = await self._send(params, self._counted(routing, step), keep_too_long)
        # Out of the step: one that is on record has not failed, whatever the record says.
        if recorded is not None:
            return self._count(from_record(recorded), escalated)
        assert answer is not None
        await self._record(step, answer)
        if isinstance(answer, ContextTooLong):
            raise answer
        return self._count(answer, escalated)

    async def _send(
        self,
        params: dict[str, Any],
        routing: Routing,
        keep_too_long: Callable[[ContextTooLong], bool] | None,
    ) -> Message | ContextTooLong:
        """An answer, or the error that is to be recorded as one."""
        try:
            with self._our_errors():
                return await self._client.messages.create(routing=routing, **params)
        except ContextTooLong as error:
            if keep_too_long is None or not keep_too_long(error):
                raise
            return error

    async def stream(
        self, params: dict[str, Any], routing: Routing
    ) -> AsyncGenerator[str | Message, None]:
        """The pieces of an answer's text as they come, and at last the whole answer."""
        async with self._step("model", params) as step:
            if step is not None and step.recorded is not None:
                message = from_record(step.recorded)
                yield answer_text(message)
                yield self._count(message)
                return
            with self._our_errors():
                async with self._client.messages.stream(
                    routing=self._counted(routing, step), **params
                ) as stream:
                    async for text in stream.text_stream:
                        yield text
                    message = await stream.get_final_message()
        await self._record(step, message)
        yield self._count(message)

    async def record(
        self, kind: str, name: str, content: Any, make: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Make a step that is no call of a model, or give what is recorded of it.

        Args:
            kind: `tool` or `step`.
            name: of the tool or function.
            content: what it is given, JSON-able: with `name` what makes it the same step.
            make: makes it; what it returns must be JSON-able, what it raises is not recorded.

        Returns:
            The answer as JSON gives it back.
        """
        return await self.record_as(kind, name, content, lambda _step: make())

    async def record_as(
        self, kind: str, name: str, content: Any, make: Callable[[str | None], Awaitable[Any]]
    ) -> Any:
        """As `record`, for what must know the step's id; None where nothing is recorded."""
        if self._recorder is None:
            return await make(None)
        async with self._step(kind, content, name) as step:
            assert step is not None
            if step.recorded is not None:
                return from_json(step.recorded)
            answer = to_json(await make(step.id))
        await self._recorder.done(step, answer)
        return from_json(answer)

    @asynccontextmanager
    async def _step(
        self, kind: str, content: Any, name: str | None = None
    ) -> AsyncIterator[Step | None]:
        """A step while it is made: left by an error, it is as if it had not begun."""
        if self._recorder is None:
            yield None
            return
        step = await self._recorder.begin(kind, name or str(content.get("model")), content)
        try:
            yield step
        except BaseException:
            self._recorder.failed(step)
            raise

    async def _record(self, step: Step | None, answer: Message | ContextTooLong) -> None:
        if self._recorder is None or step is None:
            return
        if isinstance(answer, ContextTooLong):
            await self._recorder.done(step, too_long_record(answer))
        else:
            receipt = getattr(answer, "agentcloud", None)
            await self._recorder.done(step, to_record(answer, receipt), receipt)

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

    def _counted(self, routing: Routing, step: Step | None) -> Routing:
        return replace(routing, extra_sends=self.attempts, step=None if step is None else step.id)

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
        escalated: why these calls are made at all; the first receipt says it.
    """

    calls: Calls
    routing: Routing
    deadline: Deadline
    escalated: Escalation | None = None

    async def send(
        self,
        params: dict[str, Any],
        *,
        keep_too_long: Callable[[ContextTooLong], bool] | None = None,
    ) -> Message:
        """Send a request and wait for its answer."""
        escalated, self.escalated = self.escalated, None
        routing = replace(self.routing, deadline_s=self.deadline.left_s())
        try:
            return await self.calls.create(params, routing, escalated, keep_too_long)
        except ContextTooLong:
            self.escalated = escalated  # it had no receipt: that of the shorter one says it
            raise

    async def record(
        self, kind: str, name: str, content: Any, make: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Make a step that is no call of a model, or give what is recorded of it."""
        return await self.calls.record(kind, name, content, make)

    def spend_attempt(self, why: str, last: str | None = None) -> None:
        """Spend one of the task's extra attempts."""
        self.calls.attempts.spend(why, last=last)
