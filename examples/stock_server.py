"""A small MCP server for assistant.py: what is in stock.

python examples/stock_server.py     # speaks MCP over stdin and stdout
"""

from __future__ import annotations

from mcp.server import MCPServer
from mcp_types import ToolAnnotations

STOCK = {"atlas": 12, "beacon": 0, "ember": 3}

server = MCPServer("stock", log_level="WARNING")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def count_stock(product: str) -> int:
    """Count what is left of a product."""
    return STOCK.get(product.lower(), 0)


if __name__ == "__main__":
    server.run()
