"""Requests to `/v1/messages`, and an answer put together from its stream as the protocol says."""

from __future__ import annotations

import json
from typing import Any

from support.servers import RunningServer

WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def asked(question: str, **more: Any) -> dict[str, Any]:
    body = {"model": "parallm-demo", "max_tokens": 200, "temperature": 0}
    return {**body, "messages": [{"role": "user", "content": question}], **more}


def whole(server: RunningServer, body: dict[str, Any]) -> dict[str, Any]:
    with server.client as client:
        answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def events_of(server: RunningServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream; each is named as its data says."""
    names, events = [], []
    with server.client as client, client.stream("POST", "/v1/messages", json=body | {"stream": True}) as lines:
        assert lines.status_code == 200, lines.read()
        for line in lines.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    assert [event["type"] for event in events] == names
    return events


FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def put_together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events tell of. Fails if they come in an order that the protocol does not have."""
    first, *between, delta, last = [event for event in events if event["type"] != "ping"]
    assert (first["type"], delta["type"], last) == ("message_start", "message_delta", {"type": "message_stop"})
    message = dict(first["message"])
    content: list[dict[str, Any]] = []
    open_block, pieces = False, ""
    for event in between:
        match event["type"]:
            case "content_block_start":
                assert not open_block
                open_block, pieces = True, ""
                content.append(dict(event["content_block"]))
            case "content_block_delta":
                assert open_block
                piece = event["delta"]
                if piece["type"] == "input_json_delta":
                    pieces += piece["partial_json"]
                else:
                    content[-1][FIELDS[piece["type"]]] += piece[FIELDS[piece["type"]]]
            case "content_block_stop":
                assert open_block
                open_block = False
                if content[-1]["type"] == "tool_use":
                    content[-1]["input"] = json.loads(pieces or "{}")
        assert event["index"] == len(content) - 1
    assert not open_block
    return {**message, **delta["delta"], "content": content, "usage": delta["usage"]}
