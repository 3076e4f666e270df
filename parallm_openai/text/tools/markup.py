"""Calls in markup: an element for the call and one for each argument, whose text is the value."""

from __future__ import annotations

from dataclasses import dataclass

from parallm_openai.text.tools.calls import Calls, Members, json_piece
from parallm_openai.text.tools.format import Tool
from parallm_openai.text.tools.json_calls import json_arguments, json_objects
from parallm_openai.text.tools.source import LONGEST_WORD, NAME, SPACE, Ended, NotACall, Source, Wait
from parallm_openai.text.tools.typed import Allowed, allowed

# DeepSeek's parameters say themselves that they are text.
_TEXT = 'string="true"'


@dataclass(frozen=True)
class Markup:
    """How calls are marked up.

    A call is `call`, the name, `call_end`; an argument `key`, its name, `key_end`, `value`, the text, `value_end`.
    Where `call` is empty, the name follows the start of the block and the end of the block ends the call.
    With `quoted`, names are in quotes and attributes may follow them. With `lines`, a line break belongs to
    the marks on each side of a value.
    """

    start: str
    end: str
    call: str
    call_end: str
    key: str
    key_end: str
    value: str
    value_end: str
    quoted: bool = False
    lines: bool = False

    def __call__(self, source: Source, calls: Calls) -> Wait[None]:
        inside = yield from source.match(self.start)
        yield from source.run(SPACE)
        if inside and (yield from source.peek()) in ("{", "["):
            yield from source.match("[")
            yield from source.run(SPACE)
            yield from json_objects(source, calls, self.start, self.end)
            return
        while True:
            yield from self._call(source, calls)
            if not self.call:
                return
            yield from source.run(SPACE)
            if (yield from source.match(self.end)) or not (yield from source.peek()):
                return

    def _call(self, source: Source, calls: Calls) -> Wait[None]:
        if self.call:
            yield from source.need(self.call)
        name = yield from self._name(source)
        tool = calls.tool(name)
        if tool is None:
            raise NotACall(f"no tool {name}")
        space = yield from source.run(SPACE)
        if self.call or space:
            calls.known(name)
        if self.call or (yield from source.peek()) != "{":
            yield from self._arguments(source, calls, tool)
            return
        yield from json_arguments(source, calls, name)
        yield from source.run(SPACE)
        yield from source.match(self.end)
        calls.accept()

    def _name(self, source: Source) -> Wait[str]:
        quote = (yield from source.match('"', "'")) if self.quoted else ""
        name = yield from source.run(NAME, LONGEST_WORD)
        if quote:
            yield from source.need(quote)
        if self.call:
            yield from source.run(SPACE)
            yield from source.need(">")
        return name

    def _arguments(self, source: Source, calls: Calls, tool: Tool) -> Wait[None]:
        members = Members(calls, tool["function"]["name"])
        ends = (self.call_end, self.end) if self.call else (self.end,)
        mark = yield from source.need(self.key, *ends)
        while mark == self.key:
            key, attributes = yield from self._key(source)
            wanted = Allowed({"string"}) if _TEXT in attributes else allowed(tool, key)
            between, mark = yield from self._value(source, _Value(members, key, wanted, self.lines), ends)
            if between.strip():
                calls.content(between)
        if mark == self.end and self.call:
            source.put_back(mark)
        members.close()

    def _key(self, source: Source) -> Wait[tuple[str, str]]:
        """The name of an argument, and the attributes behind it."""
        attributes = ""
        quote = (yield from source.match('"', "'")) if self.quoted else ""
        key, _ = yield from source.until(quote or self.key_end)
        if quote:
            attributes, _ = yield from source.until(self.key_end)
        if self.value:
            yield from source.run(SPACE)
            yield from source.need(self.value)
        return key if quote else key.strip(), attributes

    def _value(self, source: Source, value: _Value, ends: tuple[str, ...]) -> Wait[tuple[str, str]]:
        """Take the value; gives the text behind it and the mark behind that.

        A mark that ends a value stands in its text if the next mark is another that ends one.
        """
        last = ""
        while True:
            if last:
                try:
                    piece, mark = yield from source.until(self.value_end, self.key, *ends)
                except Ended:
                    value.close()
                    raise
                if mark != self.value_end:
                    value.close()
                    return piece, mark
            else:
                piece, mark = yield from source.before(self.value_end)
            value.add(last + piece)
            last = mark


class _Value:
    """A value under way: told while it comes where it is surely text, otherwise when it is whole."""

    def __init__(self, members: Members, key: str, wanted: Allowed, lines: bool) -> None:
        self._members = members
        self._key = key
        self._wanted = wanted
        self._lines = lines
        self._pieces: list[str] = []
        self._began = False
        self._break = ""
        if wanted.only_text:
            members.key(key)
            members.value('"')

    def add(self, piece: str) -> None:
        if self._lines and piece:
            piece = self._without_breaks(piece)
        if self._wanted.only_text:
            self._members.value(json_piece(piece))
        else:
            self._pieces.append(piece)

    def _without_breaks(self, piece: str) -> str:
        if not self._began and piece.startswith("\n"):
            piece = piece[1:]
        self._began = True
        piece = self._break + piece
        self._break = "\n" if piece.endswith("\n") else ""
        return piece.removesuffix("\n")

    def close(self) -> None:
        if self._wanted.only_text:
            self._members.value('"')
        else:
            self._members.key(self._key)
            self._members.value(self._wanted.read("".join(self._pieces)))
