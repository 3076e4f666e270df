"""Calls with JSON arguments: objects with a name and arguments, or a head with the name before the arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from parallm_openai.text.tools.calls import Calls
from parallm_openai.text.tools.format import Reader
from parallm_openai.text.tools.literals import LITERAL
from parallm_openai.text.tools.source import LONGEST_WORD, NAME, SPACE, Ended, NotACall, Source, Wait
from parallm_openai.text.tools.values import ValueReader, read_value, to_json

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
Head = Callable[[Source, Calls], Wait[str]]
"""Takes the text before a call's arguments; returns the name."""


@dataclass
class _Found:
    name: str | None = None
    arguments: str | None = None
    refused: bool = False
    emitted: bool = False


def json_calls(start: str, end: str) -> Reader:
    """Objects with a name and arguments: one, several in a row, or a list."""

    def read(source: Source, calls: Calls) -> Wait[None]:
        yield from source.run(SPACE)
        yield from source.match(start)
        yield from source.run(SPACE)
        if (yield from source.match("[")):
            yield from source.run(SPACE)
        yield from json_objects(source, calls, start, end)

    return read


def json_objects(source: Source, calls: Calls, start: str, end: str) -> Wait[None]:
    """One or more call objects up to the end of the block."""
    while True:
        yield from call_object(source, calls)
        yield from source.run(SPACE)
        # The end of the list, or one brace too many.
        while (yield from source.match("]", "}")):
            calls.accept()
            yield from source.run(SPACE)
        if (yield from source.match(",", ";")):
            yield from source.run(SPACE)
        if end and (yield from source.match(end)):
            return
        if not (yield from source.peek()):
            return
        if (yield from source.match(start)):
            yield from source.run(SPACE)


def call_object(source: Source, calls: Calls) -> Wait[None]:
    found = _Found()
    yield from _object(source, calls, found)
    if found.name is None:
        raise NotACall("no name")
    if not found.emitted and not found.refused:
        _emit(calls, found.name, found.arguments)


def _object(source: Source, calls: Calls, found: _Found) -> Wait[None]:
    yield from source.need("{")
    yield from source.run(SPACE)
    while not (yield from source.match("}")):
        key = yield from _word(source)
        yield from source.run(SPACE)
        yield from source.need(":")
        yield from source.run(SPACE)
        yield from _member(source, calls, found, key)
        yield from source.run(SPACE)
        if (yield from source.match(",")):
            yield from source.run(SPACE)
        elif (yield from source.peek()) != "}":
            if found.emitted:
                # Models leave out the last brace.
                return
            yield from source.need("}")
    if found.emitted or found.refused:
        calls.accept()


def _member(source: Source, calls: Calls, found: _Found, key: str) -> Wait[None]:
    first = yield from source.peek()
    if key in _NAMES and found.name is None and first in ('"', "'"):
        found.name = yield from _word(source)
        if calls.tool(found.name) is None:
            found.refused = True
            calls.refuse()
        else:
            calls.known(found.name)
            if found.arguments is not None:
                _emit(calls, found.name, found.arguments)
                found.emitted = True
    elif key == "function" and first == "{":
        yield from _object(source, calls, found)
    elif key in _ARGUMENTS and not found.emitted and not found.refused:
        if found.name is not None:
            yield from json_arguments(source, calls, found.name)
            found.emitted = True
        else:
            found.arguments = yield from _whole_value(source)
    elif found.refused:
        yield from read_value(source, ValueReader(LITERAL), lambda _: calls.release())
    else:
        yield from _whole_value(source)


def json_arguments(source: Source, calls: Calls, name: str) -> Wait[None]:
    """A call's arguments: an object, which comes out in pieces, or JSON in a string, which comes out when complete."""
    if (yield from source.peek()) == "{":
        calls.begin(name)
        yield from read_value(source, ValueReader(LITERAL), calls.arguments)
        calls.end()
        return
    pieces: list[str] = []
    try:
        yield from read_value(source, ValueReader(LITERAL), pieces.append)
    except Ended:
        if text := "".join(pieces):
            calls.begin(name)
            calls.arguments(begun_text(text))
        else:
            calls.known(name)
        raise
    _emit(calls, name, "".join(pieces))


def _emit(calls: Calls, name: str, arguments: str | None) -> None:
    value = object_of(arguments)
    if value is None:
        raise NotACall("arguments that are no object")
    calls.whole(name, value)


def object_of(arguments: str | None) -> str | None:
    """Arguments as the JSON of an object; they may be in a string, or missing. None if they are something else."""
    value = (arguments or "").strip()
    if value.startswith('"'):
        value = (_text_of(value) or "").strip()
    if value in ("", "null") or (value.startswith("[") and value[1:].strip() == "]"):
        return "{}"
    return to_json(value) if value.startswith("{") else None


def begun_text(string: str) -> str:
    """The text of a JSON string that was cut off."""
    return _text_of(string + '"') or ""


def _text_of(string: str) -> str | None:
    try:
        text = json.loads(string)
    except ValueError:
        return None
    # UTF-8 cannot hold a lone surrogate.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else None


def _whole_value(source: Source) -> Wait[str]:
    pieces: list[str] = []

    def keep(piece: str) -> None:
        pieces.append(piece)
        source.bound()

    yield from read_value(source, ValueReader(LITERAL), keep)
    return "".join(pieces)


def _word(source: Source) -> Wait[str]:
    """A key or a name: a short string."""
    if (yield from source.peek()) not in ('"', "'"):
        yield from source.need('"')
    pieces: list[str] = []

    def short(piece: str) -> None:
        pieces.append(piece)
        if sum(map(len, pieces)) > LONGEST_WORD:
            raise NotACall("too long for a name")

    yield from read_value(source, ValueReader(LITERAL), short)
    return _text_of("".join(pieces)) or ""


@dataclass(frozen=True)
class Headed:
    """Calls that have a head with the name, JSON arguments, and the marks `closing`.

    `opening` begins each call; models leave out the first one. If `fenced`, arguments may stand in a Markdown fence.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    opening: str
    head: Head
    closing: tuple[str, ...] = ()
    fenced: bool = False

    def __call__(self, source: Source, calls: Calls) -> Wait[None]:
        outside = yield from source.match(*self.starts)
        if outside and self.opening:
            yield from source.run(SPACE)
            yield from source.match(self.opening)
        yield from self.calls(source, calls, opened=bool(outside))

    def calls(self, source: Source, calls: Calls, opened: bool = False) -> Wait[None]:
        first = True
        while True:
            yield from source.run(SPACE)
            if not first and not (yield from source.peek()):
                return
            if not first and self.ends and (yield from source.match(*self.ends)):
                return
            if self.opening and not (first and opened):
                yield from source.need(self.opening)
            yield from self._call(source, calls)
            first = False

    def _call(self, source: Source, calls: Calls) -> Wait[None]:
        name = yield from self.head(source, calls)
        if calls.tool(name) is None:
            raise NotACall(f"no tool {name}")
        calls.known(name)
        yield from source.run(SPACE)
        if self.fenced and (yield from source.match("```json", "```")):
            yield from source.run(SPACE)
        if self.closing and (yield from source.match(*self.closing)):
            calls.whole(name, "{}")
        else:
            yield from json_arguments(source, calls, name)
        for mark in self.closing:
            yield from source.run(SPACE)
            if (yield from source.match(mark)):
                calls.accept()


def plain_head(source: Source, calls: Calls) -> Wait[str]:
    yield from source.run(SPACE)
    name = yield from source.run(NAME, LONGEST_WORD)
    if not (yield from source.peek()):
        # The name may be longer.
        raise Ended
    return name


def objects_or(other: Headed, start: str) -> Reader:
    """A list of call objects, or the other kind of calls."""
    objects = json_calls(start, "")

    def read(source: Source, calls: Calls) -> Wait[None]:
        yield from source.match(start)
        yield from source.run(SPACE)
        if (yield from source.peek()) in ("[", "{"):
            yield from objects(source, calls)
        else:
            yield from other.calls(source, calls)

    return read
