"""Collects what readers of tool calls find: the calls, and the text that turned out not to be a call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby

from parallm_openai.text.events import CallArguments, CallStart, Content, Event
from parallm_openai.text.tools.format import Tool
from parallm_openai.text.tools.source import Source
from parallm_openai.text.tools.typed import takes_nothing


class Calls:
    """The events that readers make of an answer.

    White space next to a call is dropped. So white space at the end of content waits until it is clear what follows.
    """

    def __init__(self, source: Source, tools: Sequence[Tool]) -> None:
        self._source = source
        self._tools = {tool["function"]["name"]: tool for tool in tools}
        self._events: list[Event] = []
        self._space: list[str] = []
        self._after_call = False
        self._known: str | None = None
        self.refused = False
        self.settled = False
        self.open = False
        self.count = 0

    def tool(self, name: str) -> Tool | None:
        """The tool of that name, if one was declared."""
        return self._tools.get(name)

    def known(self, name: str) -> None:
        """A call of this tool has been named: it counts even if the text ends before its arguments begin."""
        self._known = name

    def begin(self, name: str) -> None:
        self._space.clear()
        self._after_call, self._known = True, None
        self.refused, self.settled, self.open = False, True, True
        self._source.hold()
        self._events.append(CallStart(self.count, name))
        self.count += 1

    def arguments(self, text: str) -> None:
        self._source.hold()
        if text:
            self._events.append(CallArguments(self.count - 1, text))

    def end(self) -> None:
        """The call is complete. The text that follows is held until it is clear what it is."""
        self.open = False
        self._source.hold()

    def whole(self, name: str, arguments: str) -> None:
        self.begin(name)
        self.arguments(arguments)
        self.end()

    def accept(self) -> None:
        """The text taken since `hold` belongs to the calls, or is content if the call was refused."""
        if self.refused:
            self.release()
        else:
            self._source.hold()

    def refuse(self) -> None:
        """This call is not of a declared tool, so that all of it is content."""
        self.refused, self.settled, self._known = True, True, None
        self.release()

    def release(self) -> None:
        """The text taken since `hold` is content."""
        text = self._source.held()
        self._source.hold()
        self.content(text)

    def attempt(self) -> None:
        """A block may begin here."""
        self._source.hold()
        self.refused = self.settled = False

    def broken(self, mark: str, unread: str) -> None:
        """The text after `mark` cannot be read as a call, or stops being one in the middle.

        If no call has begun, the mark is content and what follows it is read again. If one has begun, it ends here,
        and only the `unread` text behind it is content.
        """
        self._known = None
        if self.open:
            self.end()
            self.content(unread)
            return
        keep = 0 if self.settled else len(mark)
        self.content(mark[:keep])
        self._source.give_back(keep)

    def cut(self, marks: Sequence[str], natural: bool) -> None:
        """The text ended in the middle of a block. An unfinished mark behind a call is dropped.

        A call without arguments so far is complete if the model itself ended the answer (`natural`) or if the tool
        takes none.
        """
        if self._known is not None:
            tool = self._tools[self._known]
            self.begin(self._known)
            if natural or takes_nothing(tool):
                self.arguments("{}")
        left = self._source.held() + self._source.rest()
        self._source.hold()
        behind_call = self.settled and not self.refused
        if not self.open and not (behind_call and any(mark.startswith(left.strip()) for mark in marks)):
            self.content(left)

    def content(self, text: str) -> None:
        kept = text.rstrip()
        if kept:
            self._events.append(Content("".join((*self._space, kept))))
            self._space.clear()
            self._after_call = False
        if len(kept) < len(text):
            self._space.append(text[len(kept) :])

    def finish(self) -> None:
        """Nothing more comes, so that white space behind content is content."""
        space = "".join(self._space)
        self._space.clear()
        if space and not self._after_call:
            self._events.append(Content(space))

    def take(self) -> list[Event]:
        """The events since the last time; neighbours of one kind are joined."""
        if len(self._events) < 2:
            events, self._events = self._events, []
            return events
        joined: list[Event] = []
        for _, group in groupby(self._events, lambda event: (type(event), getattr(event, "index", 0))):
            events = list(group)
            match events[0]:
                case Content():
                    joined.append(Content("".join(event.text for event in events if isinstance(event, Content))))
                case CallArguments(index, _):
                    text = "".join(event.text for event in events if isinstance(event, CallArguments))
                    joined.append(CallArguments(index, text))
                case event:
                    joined.append(event)
        self._events.clear()
        return joined


class Members:
    """Writes the arguments of one call one by one. The call begins with the first one, or at `close` without any."""

    def __init__(self, calls: Calls, name: str) -> None:
        self._calls = calls
        self._name = name
        self._empty = True

    def key(self, key: str) -> None:
        if self._empty:
            self._calls.begin(self._name)
        self._calls.arguments(("{" if self._empty else ", ") + json_text(key) + ": ")
        self._empty = False

    def value(self, text: str) -> None:
        """A piece of the member's value, as JSON."""
        self._calls.arguments(text)

    def close(self) -> None:
        if self._empty:
            self._calls.begin(self._name)
        self._calls.arguments("{}" if self._empty else "}")
        self._calls.end()


def json_text(text: str) -> str:
    """The text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def json_piece(text: str) -> str:
    """The text escaped as inside a JSON string, without quotes."""
    return json_text(text)[1:-1]
