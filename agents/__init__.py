"""What a user writes: agents, tools, structured outputs."""

from agentcloud.agents.agent import Agent, agent, load_agent, run_agent
from agentcloud.agents.cascade import Cascade, agreement, logprob, schema
from agentcloud.agents.context import Context
from agentcloud.agents.mcp import Http, Stdio, mcp_tools
from agentcloud.agents.subagents import as_tool
from agentcloud.agents.tools import Tool, tool

__all__ = [
    "Agent",
    "Cascade",
    "Context",
    "Http",
    "Stdio",
    "Tool",
    "agent",
    "agreement",
    "as_tool",
    "load_agent",
    "logprob",
    "mcp_tools",
    "run_agent",
    "schema",
    "tool",
]
