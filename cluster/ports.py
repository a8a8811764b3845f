"""What inference and agents ask of others: an endpoint, the scheduler, a record of steps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from anthropic.types import Message, RawMessageStreamEvent

from agentcloud.cluster.contracts import Answer, Call, Lease, LeaseRequest, Params, Settlement


class Endpoint(Protocol):
    """Something that serves calls. Raises `BackendError`s only; cancelling aborts the call."""

    async def create(self, call: Call) -> Answer:
        """Serve one call and wait for the whole answer."""
        ...

    def stream(self, call: Call) -> AsyncIterator[RawMessageStreamEvent]:
        """Serve one call as the API's raw stream events."""
        ...

    async def count_tokens(self, params: Params) -> int:
        """Tokens of the prompt, as this endpoint counts them."""
        ...

    async def close(self) -> None:
        """Release connections; calls in flight are aborted."""
        ...


class SchedulerPort(Protocol):
    """The scheduler as inference.py sees it (an actor, or the core itself in tests)."""

    async def acquire(self, request: LeaseRequest) -> Lease:
        """Wait for a lease.

        Raises:
            NoEndpoint: nothing can ever serve the request.
            BudgetExceeded: the worst case would pass a cap.
        """
        ...

    def warmed(self, lease_id: str) -> None:
        """Tell that the first token of a lease that `warms` is there; batched, never waits."""
        ...

    def settle(self, settlement: Settlement) -> None:
        """Tell the truth about a lease; batched, never waits."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One model call of a task: `answer` is its recorded answer, None when there is none yet."""

    key: str
    answer: Message | None = None


class StepRecorder(Protocol):
    """The answers of one task, recorded by content of the request and its occurrence number."""

    async def begin(self, params: Params) -> Step:
        """Name the next occurrence of this request and look its answer up."""
        ...

    async def done(self, step: Step, message: Message) -> None:
        """Record the answer, its receipt included; it is durable when this returns."""
        ...
