"""Conversations and answers as the conventions write them, for spans that are to have them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parallm_openai.text.call_ids import Message
from parallm_openai.text.description import ChatDescription, TextDescription
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning

Part = dict[str, Any]


def input_messages(description: ChatDescription | TextDescription) -> str:
    """What a request says, as JSON."""
    if isinstance(description, ChatDescription):
        return _json([{"role": each.get("role"), "parts": list(_parts(each))} for each in description.messages])
    texts = [prompt if isinstance(prompt, str) else json.dumps(prompt) for prompt in description.prompts]
    return _json([{"role": "user", "parts": [_text(text)]} for text in texts])


def output_messages(answers: Sequence[Sequence[Event]]) -> str:
    """What was answered, a message for each choice, as JSON."""
    return _json([_answer(events) for events in answers])


def _json(value: Any) -> str:
    # A client's text may hold halves of a surrogate pair, which no exporter can encode.
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace").decode("utf-8")


def _text(content: str, kind: str = "text") -> Part:
    return {"type": kind, "content": content}


def _parts(message: Message) -> Iterator[Part]:
    content = message.get("content")
    pieces = content if isinstance(content, list) else [content]
    texts = [piece.get("text", "") if isinstance(piece, Mapping) else piece for piece in pieces]
    text = "".join(each for each in texts if isinstance(each, str))
    if message.get("role") == "tool":
        yield {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": text}
    elif text:
        yield _text(text)
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        yield _call(call.get("id"), function.get("name"), function.get("arguments"))


def _call(id: Any, name: Any, arguments: Any) -> Part:
    return {"type": "tool_call", "id": id, "name": name, "arguments": arguments}


def _answer(events: Sequence[Event]) -> dict[str, Any]:
    parts: list[Part] = []
    calls: dict[int, Part] = {}
    reason = "error"
    for event in events:
        match event:
            case Content(text):
                _append(parts, "text", text)
            case Reasoning(text):
                _append(parts, "reasoning", text)
            case CallStart(index, name, id):
                parts.append(calls.setdefault(index, _call(id, name, "")))
            case CallArguments(index, text) if index in calls:
                calls[index]["arguments"] += text
            case Finish(ended, called):
                reason = "tool_call" if called else ended.value
    return {"role": "assistant", "parts": parts, "finish_reason": reason}


def _append(parts: list[Part], kind: str, text: str) -> None:
    """Add a piece to the last part if it is of the same kind, else begin one."""
    if parts and parts[-1]["type"] == kind:
        parts[-1]["content"] += text
    else:
        parts.append(_text(text, kind))
