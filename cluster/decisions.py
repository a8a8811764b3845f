"""What the scheduler decides about a request."""

from __future__ import annotations

from dataclasses import dataclass

from agentcloud.cluster.contracts import Lease
from agentcloud.cluster.errors import AgentCloudError


@dataclass(frozen=True, slots=True)
class Granted:
    """A request got its lease."""

    lease: Lease
    holder: str

    @property
    def call_id(self) -> str:
        """The call it is for."""
        return self.lease.call_id


@dataclass(frozen=True, slots=True)
class Refused:
    """A request will never get a lease."""

    call_id: str
    holder: str
    error: AgentCloudError


Decision = Granted | Refused
