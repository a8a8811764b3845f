"""What travels between a process and the response cache."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol, TypeVar

from agentcloud.cluster.errors import InvalidRequest

_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that the cache may answer.

    Attributes:
        ask_id: the call's; the same told twice is one ask.
        key: of its answer (cache_key.py).
        model: the tier or model asked for, to count by.
        patient: it can wait for hours, and so may whoever shares it.
    """

    ask_id: str
    key: str
    model: str
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer that is kept.

    Attributes:
        made_unix_s: when it was made.
        saved_usd: what it cost, and everyone who gets it saves; None: not known.
        body: the message and who served it (cache_answer.py).
    """

    made_unix_s: float
    saved_usd: Decimal | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Landed:
    """A call that was sent has its answer.

    Attributes:
        body, saved_usd: as in an `Entry`, whose time is the cache's: clocks of nodes differ.
        is_kept: it is also for others than those who wait now.
    """

    ask: Ask
    body: bytes
    saved_usd: Decimal | None
    is_kept: bool


@dataclass(frozen=True, slots=True)
class Fell:
    """A call that was sent has no answer.

    Attributes:
        error: the request's own fault: it would befall all that are equal. None: another's.
        given_up: its caller went away.
    """

    ask: Ask
    error: InvalidRequest | None = None
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Tell:
    """What a process tells; also a sign of life.

    Attributes:
        sending: after a restart of the cache: calls that the process is sending.
        again: after a restart: asks that the one before had been told.
        drops: asks whose callers went away.
    """

    holder: str
    sending: list[Ask] = field(default_factory=list)
    landed: list[Landed] = field(default_factory=list)
    fell: list[Fell] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    again: list[Ask] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Send:
    """The caller is to send its call, and then tell how it ended."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Alone:
    """The caller is to send its call, and need tell nobody."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Answered:
    """There is an answer.

    Attributes:
        age_s: since it was made; None: it was on its way, and this call waited for it.
    """

    ask: Ask
    entry: Entry
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Fault:
    """The equal call that this one waited for was refused, as this one would be."""

    ask: Ask
    error: InvalidRequest


Verdict = Send | Alone | Answered | Fault


@dataclass(frozen=True, slots=True)
class Told:
    """What a process is told.

    Attributes:
        epoch: another one than before: what the process had asked is not known any more.
    """

    epoch: str
    verdicts: list[Verdict] = field(default_factory=list)


class CachePort(Protocol):
    """The response cache as a process sees it."""

    async def exchange(self, tell: Tell) -> Told:
        """Tell it something, and be told what can be said at once."""
        ...

    async def wait(self, holder: str) -> Told:
        """Be told what became of calls that wait; nothing after a few seconds without news."""
        ...

    async def leave(self, holder: str) -> None:
        """A process ends in order: others take over what it was sending."""
        ...


class CacheLost(Exception):
    """The cache cannot be reached just now; `is_gone`: there is none."""

    def __init__(self, why: str, *, is_gone: bool = False) -> None:
        super().__init__(why)
        self.is_gone = is_gone


def packed(message: Tell | Told) -> bytes:
    """As bytes, as scheduler_wire.py does: Ray's own pickler takes over twice the time."""
    return pickle.dumps(message, protocol=5)


def unpacked(message: bytes, kind: type[_Message]) -> _Message:
    """What `packed` packed."""
    told = pickle.loads(message)  # noqa: S301 - both ends are processes of one cluster
    assert isinstance(told, kind)
    return told
