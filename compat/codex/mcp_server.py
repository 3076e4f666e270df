"""A server of the Model Context Protocol over stdin and stdout, whose only tool adds two numbers."""

from __future__ import annotations

import json
import sys
from typing import Any

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}


def answer(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    match method:
        case "initialize":
            about = {"name": "sums", "version": "1"}
            return {
                "protocolVersion": parameters["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": about,
            }
        case "tools/list":
            return {"tools": [{"name": "add", "description": "Add two numbers", "inputSchema": NUMBERS}]}
        case "tools/call":
            return {"content": [{"type": "text", "text": f"the sum is {sum(parameters['arguments'].values())}"}]}
    return {}


for line in sys.stdin:
    message = json.loads(line)
    # Without an id, it is a notification.
    if "id" in message:
        result = answer(message["method"], message.get("params") or {})
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
