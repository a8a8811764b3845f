"""An MCP server of the older protocol, by hand: a handshake, and its tools in pages of one."""

from __future__ import annotations

import json
import sys
from typing import Any

TOOLS = [
    {"name": name, "description": f"Say {name}.", "inputSchema": {"type": "object"}}
    for name in ("one", "two", "three")
]


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        return {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "old", "version": "1"},
        }
    if method == "tools/list":
        place = int(params.get("cursor", 0))
        more = {"nextCursor": str(place + 1)} if place + 1 < len(TOOLS) else {}
        return {"tools": TOOLS[place : place + 1], **more}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": f"this is {params['name']}"}]}
    return None


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        result = answer(request["method"], request.get("params", {}))
        if result is None:
            reply["error"] = {"code": -32601, "message": f"no method {request['method']}"}
        else:
            reply["result"] = result
        print(json.dumps(reply), flush=True)
