"""What travels between a process and the batcher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from agentcloud.cluster.errors import BackendError


@dataclass(frozen=True, slots=True)
class Ask:
    """One call for a batch.

    Attributes:
        ask_id: the send's; the same told twice is one call.
        account: account of fleet.yaml.
        endpoint: for errors.
        digest: of the content: after a crash, a call alike takes over what was sent.
        body: the request's parameters as JSON.
    """

    ask_id: str
    account: str
    endpoint: str
    digest: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a call of a batch ended: its message as JSON, or an error.

    Attributes:
        took_s: from the batch's creation to its end; None where it never was created.
        taken_over: the call was sent by another process, before this one asked.
    """

    ask_id: str
    message: bytes | None = None
    error: BackendError | None = None
    took_s: float | None = None
    taken_over: bool = False


@dataclass(frozen=True, slots=True)
class Tell:
    """What a process tells: calls, those it gave up, those whose delivery it has."""

    holder: str
    asks: list[Ask] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    acks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Told:
    """What it is told: ended calls, again and again until they are acknowledged.

    Attributes:
        epoch: of the batcher's process: another one must be told all calls again.
    """

    epoch: str
    deliveries: list[Delivery]


class BatchPort(Protocol):
    """The batcher as a process sees it."""

    async def exchange(self, tell: Tell) -> Told:
        """Tell it something and be told; also a sign of life."""
        ...

    async def leave(self, holder: str) -> None:
        """A process ends in order: what it waits for is given up."""
        ...
