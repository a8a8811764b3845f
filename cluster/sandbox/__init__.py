"""An Anthropic-shaped HTTP server for development and tests: no key, no cost.

It validates, limits, caches, counts, prices and fails as the real API does; what it answers is
synthetic, or comes from a real engine (`BackedResponder`).
"""

from agentcloud.cluster.sandbox.answers import Answer, Block, Call, Responder
from agentcloud.cluster.sandbox.backed import BackedResponder, Backend
from agentcloud.cluster.sandbox.server import Sandbox, serve
from agentcloud.cluster.sandbox.settings import (
    Fault,
    FaultKind,
    FaultRule,
    Latency,
    ModelSpec,
    RateLimits,
    SandboxConfig,
)
from agentcloud.cluster.sandbox.synthetic import SyntheticResponder

__all__ = [
    "Answer",
    "BackedResponder",
    "Backend",
    "Block",
    "Call",
    "Fault",
    "FaultKind",
    "FaultRule",
    "Latency",
    "ModelSpec",
    "RateLimits",
    "Responder",
    "Sandbox",
    "SandboxConfig",
    "SyntheticResponder",
    "serve",
]
