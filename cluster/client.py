"""The Messages clients: drop-ins for `anthropic.AsyncAnthropic` and `anthropic.Anthropic`."""

from agentcloud.cluster.client_async import AsyncAgentCloud, AsyncMessages
from agentcloud.cluster.client_sync import AgentCloud, Messages

__all__ = ["AgentCloud", "AsyncAgentCloud", "AsyncMessages", "Messages"]
