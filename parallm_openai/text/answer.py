"""One answer put together from its events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pydantic_core

from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Finish, Reasoning


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; `arguments` are JSON, cut off if the answer was."""

    id: str
    name: str
    arguments: str


@dataclass
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class Answer:
    """Collects events; its properties are what has come so far."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self.finish: Finish | None = None

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case CallStart(_, name, id):
                    self._calls.append(_Call(id, name))
                case CallArguments(index, text):
                    self._calls[index].arguments.append(text)
                case Finish():
                    self.finish = event

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(call.id, call.name, "".join(call.arguments)) for call in self._calls)


def as_object(arguments: str) -> dict[str, Any]:
    """The arguments of a call as an object: the complete part of them if they were cut off."""
    try:
        value = pydantic_core.from_json(arguments or "{}", allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
