"""Reading tool calls out of text while it streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum, auto

from parallm_openai.text.events import CallArguments, CallStart, Content, Event
from parallm_openai.text.scanner import pending
from parallm_openai.text.tools.format import Tool, ToolCall, ToolFormat

_BARE = frozenset("{}[],:+-. \t\r\n_") | frozenset(map(chr, range(0x30, 0x3A))) | frozenset("truefalsnE")


class JsonExtent:
    """Finds where a JSON value ends, fed in pieces; does not judge what is inside."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.began = False
        self.done = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value; `done` says whether it ended there."""
        for at, character in enumerate(text):
            if self._in_string:
                self._string(character)
            elif character == '"':
                self._in_string = self.began = True
            elif self._ends_before(character):
                self.done = True
                return at
            elif character in "{[":
                self._depth += 1
                self.began = True
            elif character in "}]":
                self._depth -= 1
                self.done = self._depth == 0
            else:
                self.began = self.began or not character.isspace()
            if self.done:
                return at + 1
        return len(text)

    def _string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            self.done = self._depth == 0

    def _ends_before(self, character: str) -> bool:
        if character not in _BARE:
            return True
        return self._depth == 0 and self.began and (character in ",}]" or character.isspace())


class _State(Enum):
    START = auto()
    OUTSIDE = auto()
    BLOCK = auto()
    ARGUMENTS = auto()
    PLAIN = auto()


class ToolSplitter:
    """Splits an answer into its content and its tool calls.

    A block that cannot be read as calls comes out as the text that it is. White space around calls is dropped.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = format
        self._tools = tools
        self._names = {tool["function"]["name"] for tool in tools}
        self._state = _State.OUTSIDE if format.start else _State.START
        self._held = ""
        self._space = ""
        self._in_block = 0
        self._extent = JsonExtent()
        self._first = True
        self._whole: list[str] | None = None
        self.calls = 0

    @property
    def between_calls(self) -> bool:
        """Whether at least one call is complete and none is under way."""
        return self.calls > 0 and self._state is not _State.ARGUMENTS

    def feed(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        steps = {
            _State.START: self._start,
            _State.OUTSIDE: self._outside,
            _State.BLOCK: self._block,
            _State.ARGUMENTS: self._arguments,
            _State.PLAIN: self._plain,
        }
        while True:
            before = (self._state, len(self._held))
            events += steps[self._state]()
            if (self._state, len(self._held)) == before:
                return events

    def finish(self) -> list[Event]:
        """What was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        if self._state is _State.ARGUMENTS:
            return self._arguments_piece(held, ended=True)
        if self._state is _State.BLOCK:
            return self._read_block(held, "")
        if self.calls and not (self._space + held).strip():
            return []
        held = self._space + held
        return [Content(held)] if held else []

    def _start(self) -> list[Event]:
        assert self._format.opens is not None
        match = self._format.opens.match(self._held, partial=True)
        if match is None or (not match.partial and match["name"] not in self._names):
            self._state = _State.PLAIN
        elif not match.partial:
            self._state = _State.BLOCK
        return []

    def _plain(self) -> list[Event]:
        text, self._held = self._held, ""
        return [Content(text)] if text else []

    def _outside(self) -> list[Event]:
        start = self._format.start
        at = self._held.find(start)
        if at >= 0:
            text, self._held = self._held[:at], self._held[at + len(start) :]
            self._state, self._in_block = _State.BLOCK, 0
            events = self._content(text)
            self._space = ""
            return events
        keep = pending(self._held, (start,))
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._content(text)

    def _content(self, text: str) -> list[Event]:
        """Content without the white space at its end, which may turn out to stand before a call."""
        text = self._space + text
        if self.calls and not text.strip():
            self._space = text
            return []
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return [Content(kept)] if kept else []

    def _block(self) -> list[Event]:
        end = self._held.find(self._format.end) if self._format.end else -1
        if self._format.head is not None:
            match = self._format.head.search(self._held)
            if match is not None and (end < 0 or match.start() < end):
                self._held = self._held[match.end() :]
                self._state, self._extent = _State.ARGUMENTS, JsonExtent()
                self._first, self._whole = True, None
                self._in_block += 1
                self.calls += 1
                return [CallStart(self.calls - 1, match["name"].strip())]
        if end < 0:
            return []
        text, self._held = self._held[:end], self._held[end + len(self._format.end) :]
        self._state = _State.OUTSIDE
        return self._read_block(text, self._format.end)

    def _read_block(self, text: str, end: str) -> list[Event]:
        """The calls of a block whose arguments were not streamed."""
        if self._in_block:
            return []
        calls = self._parsed(text)
        if not calls:
            return self._content(self._format.start + text + end)
        events: list[Event] = []
        for call in calls:
            events += [CallStart(self.calls, call.name), CallArguments(self.calls, call.arguments)]
            self.calls += 1
        return events

    def _parsed(self, text: str) -> list[ToolCall]:
        if self._format.parse is None:
            return []
        try:
            return self._format.parse(text, self._tools)
        except ValueError:
            return []

    def _arguments(self) -> list[Event]:
        if not self._extent.began:
            self._held = self._held.lstrip()
        size = self._extent.feed(self._held)
        text, self._held = self._held[:size], self._held[size:]
        if self._extent.done:
            self._state = _State.BLOCK
        return self._arguments_piece(text, self._extent.done)

    def _arguments_piece(self, text: str, ended: bool) -> list[Event]:
        """A piece of arguments; those that come as a JSON string are decoded when they are whole."""
        if self._first and text:
            self._first = False
            self._whole = [] if text.startswith('"') else None
        if self._whole is not None:
            self._whole.append(text)
            if not ended:
                return []
            text = _decoded("".join(self._whole))
        return [CallArguments(self.calls - 1, text)] if text else []


def _decoded(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text
