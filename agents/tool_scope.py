"""What a tool may use of the ask that calls it."""

from __future__ import annotations

from dataclasses import dataclass

from agentcloud.agents.attempts import Attempts
from agentcloud.cluster.clock import Clock


@dataclass(frozen=True, slots=True)
class ToolScope:
    """The ask, as its tools see it.

    Attributes:
        attempts: the task's budget of extra attempts.
        clock: the time seam.
    """

    attempts: Attempts
    clock: Clock
