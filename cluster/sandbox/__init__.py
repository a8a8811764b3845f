"""An Anthropic-shaped HTTP server for development and tests: no key, no cost.

It validates, limits, caches, counts, prices and fails as the real API does. What it answers is
synthetic and says so, or comes from a real engine (`BackedResponder`).

- The API's routes: POST /v1/messages (unary and streamed), POST /v1/messages/count_tokens,
  GET /v1/models and /v1/models/{id}, and /v1/messages/batches with all that is below it.
- Its own: GET /sandbox/state (`?last=N` calls), POST /sandbox/reset, POST /sandbox/faults
  (`{"kind": "overloaded", "count": 3}`) and DELETE, which forgets them, and on any call the header
  `x-sandbox-fault: stream_error; after_deltas=3`.
- Limits, latency, models, keys and planned faults: `SandboxConfig`.

It is not the API in this: tokens are counted by a rule (counting.py), server tools are missing, a
batch's cancellation is instant, and a signed thinking block is good for every account, model and
conversation.
"""

from agentcloud.cluster.sandbox.answers import Answer, Block, Call, Responder
from agentcloud.cluster.sandbox.backed import BackedResponder, Backend
from agentcloud.cluster.sandbox.server import Sandbox, serve
from agentcloud.cluster.sandbox.settings import (
    BatchSettings,
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
    "BatchSettings",
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
