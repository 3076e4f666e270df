"""Calls of named values: Python's `name(key=value)` and Gemma's `call:name{key:value}`."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from parallm_openai.text.tools.calls import Calls, Members
from parallm_openai.text.tools.format import Tool
from parallm_openai.text.tools.source import LONGEST_WORD, NAME, SPACE, NotACall, Source, Wait
from parallm_openai.text.tools.typed import Allowed, allowed
from parallm_openai.text.tools.values import LITERAL, Style, ValueReader, literal, read_value

_KEY = regex.compile(r"[\w\-]*")


@dataclass(frozen=True)
class NamedValues:
    """A call is `prefix`, the name, `opening`, keys each with `assign` and a value, `closing`."""

    start: str
    end: str
    prefix: str = ""
    opening: str = "("
    assign: str = "="
    closing: str = ")"
    style: Style = LITERAL
    key: regex.Pattern[str] = _KEY
    listed: bool = False

    def __call__(self, source: Source, calls: Calls) -> Wait[None]:
        yield from source.run(SPACE)
        yield from source.match(self.start)
        yield from source.run(SPACE)
        if self.listed:
            yield from source.need("[")
        else:
            yield from source.match("[")
        while True:
            yield from source.run(SPACE)
            yield from self._call(source, calls)
            yield from source.run(SPACE)
            if (yield from source.match("]")):
                calls.accept()
                yield from source.run(SPACE)
            elif (yield from source.match(",", ";")):
                yield from source.run(SPACE)
            if self.end and (yield from source.match(self.end)):
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
                yield from read_value(source, self._reader(allowed(tool, key)), members.value)
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
            key = (yield from source.run(self.key, LONGEST_WORD)).strip()
        if not key:
            raise NotACall("no key")
        return key

    def _reader(self, wanted: Allowed) -> ValueReader:
        """Reads a value; one without quotes is what the schema makes of it."""

        def word(text: str) -> str | None:
            if literal(text) is None and not self.style.names:
                return None
            return wanted.read(text)

        return ValueReader(self.style, word)
