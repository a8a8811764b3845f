"""What a user writes: agents, tools, structured outputs."""
