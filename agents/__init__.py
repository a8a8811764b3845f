"""What a user writes: agents, tools, structured outputs."""

from agentcloud.agents.agent import Agent, agent, load_agent, run_agent
from agentcloud.agents.context import Context
from agentcloud.agents.tools import Tool, tool

__all__ = ["Agent", "Context", "Tool", "agent", "load_agent", "run_agent", "tool"]
