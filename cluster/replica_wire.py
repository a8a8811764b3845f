"""What travels between a caller's process and a replica, many to a message.

Named tuples, because they pickle in a fifth of a dataclass's time, and a busy replica sends tens of
thousands a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from agentcloud.cluster.contracts import Call, Timings
from agentcloud.cluster.errors import BackendError


class Order(NamedTuple):
    """One call on its way to the replica; `key` is the caller's own number for it."""

    key: int
    call: Call
    stream: bool = False


class Answered(NamedTuple):
    """A whole answer: the message's JSON."""

    key: int
    message: bytes
    timings: Timings


class Streamed(NamedTuple):
    """An event of a streamed call, as JSON; `timings` marks the last one."""

    key: int
    event: str
    timings: Timings | None = None


class Failed(NamedTuple):
    """A call that failed; the others of its batch go on."""

    key: int
    error: BackendError


Parcel = Answered | Streamed | Failed


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """What a replica is, once it is ready.

    Attributes:
        context_tokens: prompt and answer together, as the engine has it.
        pid: the actor's process; the engine's processes are its descendants.
        node_id: Ray's id of the node it runs on.
        start_s: seconds from the actor's start to readiness.
        kv_tokens: tokens that its KV cache holds; None where the engine does not say.
    """

    name: str
    model: str
    context_tokens: int
    pid: int
    node_id: str
    start_s: float
    kv_tokens: int | None = None
