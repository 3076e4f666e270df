"""What the parts of a conversation say, whichever surface they come from, and the chat messages that this makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ChatMessage = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """A message."""

    role: str
    text: str


@dataclass(frozen=True)
class Thought:
    """What the model thought before it said or called what comes next."""

    text: str


@dataclass(frozen=True)
class Called:
    """The model's call of a tool."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answered:
    """The result of a call."""

    id: str
    text: str


Statement = Said | Thought | Called | Answered


def messages_of(statements: Iterable[Statement]) -> list[ChatMessage]:
    """Chat messages of these. The thoughts, the text and the calls of one turn of the assistant are one message."""
    written = _Messages()
    for statement in statements:
        match statement:
            case Thought(text):
                written.think(text)
            case Said(role, text):
                written.say(role, text)
            case Called(id, name, arguments):
                written.call(id, name, arguments)
            case Answered(id, text):
                written.add({"role": "tool", "tool_call_id": id, "content": text})
    return written.messages


class _Messages:
    """Chat messages under construction. Thoughts wait for the text or the calls that they led to."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._thoughts: list[str] = []

    def think(self, text: str) -> None:
        self._thoughts.append(text)

    def say(self, role: str, text: str) -> None:
        if role == "assistant":
            self.messages.append({"role": role, "content": text, **self._reasoning()})
        else:
            self.add({"role": role, "content": text})

    def call(self, id: str, name: str, arguments: str) -> None:
        """Add a call to the assistant's message before it, if there is one."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        message = self.messages[-1]
        thoughts = [message.get("reasoning_content"), *self._reasoning().values()]
        if any(thoughts):
            message["reasoning_content"] = "\n".join(thought for thought in thoughts if thought)
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        message.setdefault("tool_calls", []).append(call)

    def add(self, message: ChatMessage) -> None:
        """Add a message that is not the assistant's. Thoughts that led to nothing become a turn before it."""
        if self._thoughts:
            self.say("assistant", "")
        self.messages.append(message)

    def _reasoning(self) -> dict[str, str]:
        thoughts, self._thoughts = self._thoughts, []
        return {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
