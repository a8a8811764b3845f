"""What inference and agents ask of others: an endpoint, the scheduler, a record of steps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from anthropic.types import RawMessageStreamEvent

from agentcloud.cluster.contracts import (
    Answer,
    Call,
    Lease,
    LeaseRequest,
    Params,
    Receipt,
    Settlement,
)


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
    """One step of a task.

    Attributes:
        id: unique; says the task, what is asked, and which occurrence of it this is.
        key: what is asked.
        occurrence: how many equal steps of the task come before it.
        recorded: its answer as JSON; None when there is none yet.
    """

    id: str
    key: str
    occurrence: int
    recorded: bytes | None = None


class StepRecorder(Protocol):
    """The steps of one task, recorded by their content and its occurrence number."""

    async def begin(self, kind: str, name: str, content: Any) -> Step:
        """Name the next step with this content and look its answer up.

        Args:
            kind: `model`, `tool` or `step`.
            name: of the model, the tool or the function.
            content: JSON-able; for a model the request's parameters.

        Raises:
            TaskError: it may not be made (again).
        """
        ...

    async def done(self, step: Step, answer: bytes, receipt: Receipt | None = None) -> None:
        """Record the answer (JSON); it is durable when this returns."""
        ...

    def failed(self, step: Step) -> None:
        """It has no answer: the next step with its content takes its place."""
        ...
