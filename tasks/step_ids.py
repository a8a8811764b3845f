"""Pure: names of steps and hashes of what was asked.

A step's id says its task, its content and its occurrence: the same request asked again in the task
is another step. Nothing depends on the order in which concurrent steps begin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import to_jsonable_python

from agentcloud.tasks.ledger_wire import ContentRow

#: After a step's ids nothing begins with this letter.
PAST_STEPS: Final = "g"
_TASK_BYTES: Final = 10
_STEP_BYTES: Final = 14
_CONTENT_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step asks, as it is stored.

    Attributes:
        key: hash of everything that makes it this step.
        settings: hash of the request without its messages.
        history: hash of the whole conversation; None: it has none.
        contents: the parts, each under its hash.
    """

    key: str
    settings: str
    history: str | None
    contents: tuple[ContentRow, ...]


def asked(kind: str, name: str, content: Any) -> Asked:
    """Hash what a step asks.

    Args:
        kind: `model`, `tool` or `step`.
        name: the model's, the tool's or the function's.
        content: JSON-able; a model's request is stored message by message, so that a conversation
            of n turns takes n messages and not n squared.
    """
    messages: Sequence[Any] = ()
    if kind == "model" and isinstance(content, Mapping):
        messages = content.get("messages", ())
        content = {key: value for key, value in content.items() if key != "messages"}
    body = canonical({"kind": kind, "name": name, "content": content})
    settings = _hash(body)
    contents = [ContentRow(settings, None, body)]
    history = None
    for message in messages:
        part = canonical(message)
        parent, history = history, _hash((history or "").encode() + part)
        contents.append(ContentRow(history, parent, part))
    key = _hash(f"{settings}{history or ''}".encode())
    return Asked(key, settings, history, tuple(contents))


def task_prefix(job_id: str, task_id: str) -> str:
    """How the ids of all steps of a task begin."""
    return _digest(json.dumps([job_id, task_id]).encode(), _TASK_BYTES)


def step_id(prefix: str, key: str, occurrence: int) -> str:
    """The id of a step: hexadecimal digits only, so that a range of ids is a task's."""
    return prefix + _digest(f"{key}/{occurrence}".encode(), _STEP_BYTES)


def canonical(value: Any) -> bytes:
    """A value as JSON that is the same whenever the value is."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    ).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    return to_jsonable_python(value)


def _hash(data: bytes) -> str:
    return _digest(data, _CONTENT_BYTES)


def _digest(data: bytes, size: int) -> str:
    return hashlib.blake2b(data, digest_size=size).hexdigest()
