"""What the scheduler tells of the load on local models, for scaling them (demand_book.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentcloud.cluster.contracts import EndpointSpec


@dataclass(frozen=True, slots=True)
class Expected:
    """A local model that may have replicas, though none may run now.

    Attributes:
        spec: what a replica of it is taken to be.
        start_s: how long a start is taken to last.
        broken: why none can be started; None: requests for it wait.
    """

    spec: EndpointSpec
    start_s: float
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """Calls of one local model.

    Attributes:
        granted: calls that its replicas were given.
        hosted_usd: what those calls would have cost at the cheapest hosted model able to take
            them; calls without one are not in `replaceable`.
        replaceable: calls with such a hosted model.
        inflight: calls that its replicas have now.
        calls_per_s: what one saturated replica takes.
        known: whether `calls_per_s` was measured.
    """

    granted: int = 0
    replaceable: int = 0
    hosted_usd: float = 0.0
    inflight: int = 0
    calls_per_s: float = 1.0
    known: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """Requests that wait, by the local models that could serve them, the cheapest first.

    Attributes:
        stranded: no endpoint able to serve them is there at all.
    """

    models: tuple[str, ...]
    waiting: int
    stranded: bool


@dataclass(slots=True)
class Spilled:
    """Calls that went to a hosted model though a local one was able."""

    calls: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """The load at one moment."""

    models: Mapping[str, ModelDemand] = field(default_factory=dict)
    backlogs: Sequence[Backlog] = ()
    spilled: Mapping[tuple[str, ...], Spilled] = field(default_factory=dict)
