"""Feed a chat parser a text in pieces, and put together what it reports."""

from __future__ import annotations

import json
import random
from typing import Any

from parallm_openai.text.chat_parser import ChatParser
from parallm_openai.text.events import CallArguments, CallStart, Content, Event, Reasoning


def cut(text: str, rng: random.Random) -> list[str]:
    """The text in pieces of random size."""
    pieces = []
    while text:
        size = rng.choice([1, 1, 2, 3, 7, 30])
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def read(parser: ChatParser, pieces: list[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece, ())]
    return events + parser.finish()


def summary(events: list[Event]) -> tuple[str, str, list[tuple[str, Any]]]:
    """Content, reasoning and calls, with the pieces joined."""
    content, reasoning = "", ""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for event in events:
        match event:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallStart(index, name):
                names[index] = name
            case CallArguments(index, text):
                arguments[index] = arguments.get(index, "") + text
    return content, reasoning, [(names[index], json.loads(arguments[index])) for index in names]
