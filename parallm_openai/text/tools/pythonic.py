"""Calls with named values: Python's `name(key=value)` and Gemma's `call:name{key:value}`."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from parallm_openai.text.tools.calls import Calls, Members
from parallm_openai.text.tools.format import Tool
from parallm_openai.text.tools.json_calls import json_objects
from parallm_openai.text.tools.literals import PYTHON, Style
from parallm_openai.text.tools.source import LONGEST_WORD, NAME, SPACE, NotACall, Source, Wait
from parallm_openai.text.tools.typed import Allowed, allowed
from parallm_openai.text.tools.values import ValueReader, read_value

_KEY = regex.compile(r"[\w\-]*")


@dataclass(frozen=True)
class NamedValues:
    """A call is `prefix`, the name, `opening`, keys each with `assign` and a value, `closing`."""

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    prefix: str = ""
    opening: str = "("
    assign: str = "="
    closing: str = ")"
    style: Style = PYTHON
    key: regex.Pattern[str] = _KEY
    listed: bool = False

    def __call__(self, source: Source, calls: Calls) -> Wait[None]:
        yield from source.run(SPACE)
        marked = yield from source.match(*self.starts)
        yield from source.run(SPACE)
        if self.listed:
            yield from source.need("[")
        else:
            yield from source.match("[")
        yield from source.run(SPACE)
        if marked and (yield from source.peek()) == "{":
            # Models of these families also write JSON inside their marks.
            yield from json_objects(source, calls, marked, self.ends[0])
        else:
            yield from self.calls(source, calls)

    def calls(self, source: Source, calls: Calls) -> Wait[None]:
        """Calls up to the end of the block."""
        while True:
            yield from source.run(SPACE)
            yield from self._call(source, calls)
            yield from source.run(SPACE)
            if (yield from source.match("]")):
                calls.accept()
                yield from source.run(SPACE)
            elif (yield from source.match(",", ";")):
                yield from source.run(SPACE)
            if (yield from source.match(*self.ends)):
                return
            if not (yield from source.peek()):
                return

    def _call(self, source: Source, calls: Calls) -> Wait[None]:
        if self.prefix:
            yield from source.need(self.prefix)
        name = yield from source.run(NAME, LONGEST_WORD)
        yield from source.need(self.opening)
        tool = calls.tool(name)
        if not name:
            raise NotACall("no name")
        if tool is not None:
            calls.known(name)
        else:
            calls.refuse()
        yield from self._members(source, calls, Members(calls, name), tool)

    def _members(self, source: Source, calls: Calls, members: Members, tool: Tool | None) -> Wait[None]:
        yield from source.run(SPACE)
        while not (yield from source.match(self.closing)):
            key = yield from self._key(source)
            yield from source.run(SPACE)
            yield from source.need(self.assign)
            if tool is None:
                yield from read_value(source, ValueReader(self.style), lambda _: calls.release())
            else:
                members.key(key)
                yield from read_value(source, self._reader(allowed(tool, key, bare=True)), members.value)
            yield from source.run(SPACE)
            if not (yield from source.match(",")):
                yield from source.need(self.closing)
                break
            yield from source.run(SPACE)
        if tool is None:
            calls.release()
        else:
            members.close()

    def _key(self, source: Source) -> Wait[str]:
        raw = self.style.raw
        if raw and (yield from source.match(raw)):
            key, _ = yield from source.until(raw)
        else:
            # Keys have no quotes in this format, but models sometimes write those of JSON.
            key = (yield from source.run(self.key, LONGEST_WORD)).strip().strip("\"'")
        if not key:
            raise NotACall("no key")
        return key

    def _reader(self, wanted: Allowed) -> ValueReader:
        """A reader of values; a value without quotes gets the type that the schema allows."""
        return ValueReader(self.style, wanted.read)
