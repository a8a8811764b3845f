"""What a tool may use of the ask that calls it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.clock import Clock


@dataclass(frozen=True, slots=True)
class ToolScope:
    """The ask, as its tools see it.

    Attributes:
        attempts: the task's budget of extra attempts.
        clock: the time seam.
        run: runs another agent on an item within the task, counted in the ask.
    """

    attempts: Attempts
    clock: Clock
    run: Callable[[Any, Any], Awaitable[Any]]
