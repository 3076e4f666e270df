"""Calls in markup: an element for the call, and an element for each argument with the value as its text."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from parallm_openai.text.tools.calls import Calls, Members, json_piece
from parallm_openai.text.tools.format import Tool
from parallm_openai.text.tools.json_calls import json_arguments, json_objects
from parallm_openai.text.tools.source import LONGEST_WORD, NAME, SPACE, Ended, NotACall, Source, Wait
from parallm_openai.text.tools.typed import Allowed, allowed, declared

# DeepSeek's parameters have an attribute that says whether they are text or JSON.
_TEXT = regex.compile(r"""string=["']?true""")
_BARE = regex.compile(r"""string=["']?false""")
# The white space of an indentation is held back together with the line break before it.
_LAST_BREAK = regex.compile(r"\n[ \t]{0,32}\Z")


@dataclass(frozen=True)
class Markup:
    """The marks of calls and arguments.

    A call is `call`, the name, `call_end`. An argument is `key`, its name, `key_end`, `value`, the text, `value_end`.
    If `call` is empty, the name follows the start of the block, and the end of the block ends the call.
    If `quoted`, names are in quotes and attributes may follow them. If `lines`, a line break belongs to the marks on
    each side of a value.
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
            space = yield from source.run(SPACE)
            if not (self.lines and "\n" in space and (yield from source.peek()) != ">"):
                yield from source.need(">")
        return name

    def _arguments(self, source: Source, calls: Calls, tool: Tool) -> Wait[None]:
        members = Members(calls, tool["function"]["name"])
        ends = (self.call_end, self.end) if self.call else (self.end,)
        mark = yield from source.need(self.key, *ends)
        missing = declared(tool)
        while mark == self.key:
            key, attributes = yield from self._key(source)
            text, bare = (pattern.search(attributes) is not None for pattern in (_TEXT, _BARE))
            wanted = Allowed({"string"}) if text else allowed(tool, key, bare)
            missing.discard(key)
            value = _Value(members, key, wanted, self.lines)
            between, mark = yield from self._value(source, value, _Following(self, calls, missing, ends))
            if between.strip():
                calls.content(between)
        if mark == self.end and self.call:
            source.put_back(mark)
        members.close()

    def _key(self, source: Source) -> Wait[tuple[str, str]]:
        """The name of an argument, and the attributes behind it."""
        attributes = ""
        quote = (yield from source.match('"', "'")) if self.quoted else ""
        # With `lines`, the end of the line replaces a mark that was left out.
        key, _ = yield from source.until(quote or self.key_end, *("\n" if self.lines else ()))
        if quote:
            attributes, _ = yield from source.until(self.key_end)
        if self.value:
            yield from source.run(SPACE)
            yield from source.need(self.value)
        return key if quote else key.strip(), attributes

    def _value(self, source: Source, value: _Value, following: _Following) -> Wait[tuple[str, str]]:
        """Take the value. Returns the text behind it and the mark behind that text.

        A mark that ends a value is part of the text if the next mark is again one that ends a value. Models may also
        leave that mark out; then the value ends at a mark that cannot be inside a value.
        """
        last = ""
        while True:
            if last:
                try:
                    piece, mark = yield from source.until(self.value_end, self.key, *following.ends)
                except Ended:
                    value.close()
                    raise
                if mark != self.value_end:
                    value.close()
                    return piece, mark
            else:
                piece, mark = yield from source.before(self.value_end, self.key, *following.ends)
            value.add(last + piece)
            last = mark if mark == self.value_end else ""
            if last or not mark:
                continue
            if mark != self.key:
                text, after = yield from following.end(source, mark)
            elif self.value or value.may_end:
                text, after = yield from following.key(source)
            else:
                text, after = mark, ""
            value.add(text)
            if after:
                source.put_back(after)
                value.close(marked=False)
                return (yield from source.until(self.key, *following.ends))


@dataclass(frozen=True)
class _Following:
    """Decides whether a mark inside a value ends it. Returns the text that is part of the value, and the rest."""

    marks: Markup
    calls: Calls
    missing: set[str]
    """The arguments of the call that may still come."""
    ends: tuple[str, ...]

    def key(self, source: Source) -> Wait[tuple[str, str]]:
        """After the mark of a key, which ends the value if a missing argument is named next."""
        marks = self.marks
        text, mark = marks.key, ""
        while not mark and len(text) < LONGEST_WORD:
            piece, mark = yield from source.before(marks.key_end, "\n", marks.key)
            text += piece
        if mark != marks.key_end and not (marks.lines and mark == "\n"):
            source.put_back(mark)
            return text, ""
        name = text[len(marks.key) :]
        text += mark
        if marks.quoted and name[:1] in ("'", '"'):
            name = name[1:].partition(name[0])[0]
        if name.strip() not in self.missing:
            return text, ""
        if marks.value:
            text += yield from source.run(SPACE)
            mark = yield from source.match(marks.value)
            text += mark
        return ("", text) if mark else (text, "")

    def end(self, source: Source, mark: str) -> Wait[tuple[str, str]]:
        """After the end of a call. It ends the value if another call or nothing follows before the end of a value."""
        marks = self.marks
        begins = tuple(each for each in (marks.start, marks.call) if each)
        # The text taken; `cut` is before the last end of a call in it.
        pieces, end, cut = [mark], mark, 0
        try:
            while True:
                piece, mark = yield from source.before(marks.value_end, *self.ends, *begins)
                if mark == marks.value_end:
                    pieces.append(piece)
                    source.put_back(mark)
                    return "".join(pieces), ""
                pieces += (piece, mark)
                if mark in self.ends and (mark == self.ends[0] or end != self.ends[0]):
                    end, cut = mark, len(pieces) - 1
                if mark in begins and (yield from self._call(source, mark, pieces)):
                    break
        except Ended:
            pass
        return "".join(pieces[:cut]), "".join(pieces[cut:])

    def _call(self, source: Source, mark: str, pieces: list[str]) -> Wait[bool]:
        """Whether the name of a tool follows a mark that may begin a call."""
        if mark == self.marks.start:
            pieces.append((yield from source.run(SPACE)))
            if self.marks.call:
                mark = yield from source.match(self.marks.call)
                pieces.append(mark)
                if not mark:
                    return False
        if self.marks.quoted:
            pieces.append((yield from source.match('"', "'")))
        name = yield from source.run(NAME)
        pieces.append(name)
        return self.calls.tool(name) is not None


class _Value:
    """A value as it grows. It comes out in pieces if it is certainly text, otherwise when it is complete."""

    def __init__(self, members: Members, key: str, wanted: Allowed, lines: bool) -> None:
        self._members = members
        self._key = key
        self._wanted = wanted
        self._lines = lines
        self._pieces: list[str] = []
        self._began = False
        self._blank = True
        self._break = ""
        if wanted.only_text:
            members.key(key)
            members.value('"')

    @property
    def may_end(self) -> bool:
        """Whether a mark may end the value here. In text it must be on a line of its own."""
        return not self._wanted.only_text or (bool(self._break) and not self._blank)

    def add(self, piece: str) -> None:
        if not piece:
            return
        if self._lines and not self._began:
            piece = piece.removeprefix("\n")
        self._began = True
        self._blank = self._blank and not piece.strip()
        piece = self._break + piece
        last = _LAST_BREAK.search(piece)
        self._break = last[0] if last is not None else ""
        self._add(piece[: len(piece) - len(self._break)])

    def _add(self, piece: str) -> None:
        if self._wanted.only_text:
            self._members.value(json_piece(piece))
        else:
            self._pieces.append(piece)

    def close(self, marked: bool = True) -> None:
        """The value is complete. A line break belongs to the mark behind it if `lines`, or if there is no such mark."""
        if marked:
            self._add(self._break[:-1] if self._lines and self._break.endswith("\n") else self._break)
        if self._wanted.only_text:
            self._members.value('"')
        else:
            self._members.key(self._key)
            self._members.value(self._wanted.read("".join(self._pieces)))
