"""Tools for chat requests, and the choices of an answer, whole or put together from a stream."""

from __future__ import annotations

import json
from typing import Any

from support.servers import RunningServer

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIMER: Any = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Set a timer",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 99}},
            "required": ["minutes"],
            "additionalProperties": False,
        },
    },
}


def whole(server: RunningServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    with server.client as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return [_choice(choice["message"], choice) for choice in answer.json()["choices"]]


def _choice(message: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    calls += [message["function_call"]] if message.get("function_call") else []
    return {
        "content": message.get("content") or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": [(call["name"], call["arguments"]) for call in calls],
        "finish_reason": choice["finish_reason"],
        "tokens": [entry["token"] for entry in (choice["logprobs"] or {}).get("content", [])],
    }


def streamed(server: RunningServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The same, put together from the chunks of a stream."""
    messages: list[dict[str, Any]] = [
        {"content": "", "reasoning_content": "", "tool_calls": []} for _ in range(body["n"])
    ]
    choices: list[dict[str, Any]] = [{"finish_reason": None, "logprobs": {"content": []}} for _ in range(body["n"])]
    with server.client as client, client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as lines:
        data = [line.removeprefix("data: ") for line in lines.iter_lines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    for chunk in map(json.loads, data):
        for choice in chunk["choices"]:
            _add(messages[choice["index"]], choice["delta"])
            kept = choices[choice["index"]]
            kept["finish_reason"] = choice["finish_reason"] or kept["finish_reason"]
            kept["logprobs"]["content"] += (choice["logprobs"] or {}).get("content", [])
    return [_choice(message, choice) for message, choice in zip(messages, choices, strict=True)]


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    message["content"] += delta.get("content") or ""
    message["reasoning_content"] += delta.get("reasoning_content") or ""
    for call in delta.get("tool_calls") or []:
        if "id" in call:
            message["tool_calls"].append({"function": {"name": call["function"]["name"], "arguments": ""}})
        message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if call := delta.get("function_call"):
        message.setdefault("function_call", {"name": call.get("name"), "arguments": ""})
        message["function_call"]["arguments"] += call["arguments"]
