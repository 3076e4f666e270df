"""Reads tool calls from text while it streams."""

from __future__ import annotations

from collections.abc import Sequence

from parallm_openai.text.events import Event
from parallm_openai.text.tools.calls import Calls
from parallm_openai.text.tools.format import Tool, ToolFormat
from parallm_openai.text.tools.source import Ended, NotACall, Source, Wait


class ToolSplitter:
    """Splits an answer into its content and its calls of declared tools.

    Text that turns out not to be such a call is content. White space around calls is dropped.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = format
        self._starts = format.starts
        self._source = Source()
        self._calls = Calls(self._source, tools)
        self._reading = self._read()
        self._natural = False

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._calls.count

    @property
    def between_calls(self) -> bool:
        """Whether at least one call is complete and none is unfinished."""
        return self._calls.count > 0 and not self._calls.open

    def feed(self, text: str) -> list[Event]:
        self._source.feed(text)
        return self._go_on()

    def finish(self, natural: bool = False) -> list[Event]:
        """What was held back, now that nothing more comes; `natural` if the model itself ended the answer."""
        self._source.ended, self._natural = True, natural
        events = self._go_on()
        self._calls.finish()
        return events + self._calls.take()

    def _go_on(self) -> list[Event]:
        next(self._reading, None)
        return self._calls.take()

    def _read(self) -> Wait[None]:
        if not self._format.start:
            yield from self._block("")
        while mark := (yield from self._outside()):
            yield from self._block(mark)

    def _outside(self) -> Wait[str]:
        """Take content up to a mark that begins a block. Returns the mark without taking it, or "" at the end."""
        mark = ""
        while not mark:
            try:
                piece, mark = yield from self._source.before(*self._starts)
            except Ended:
                self._calls.content(self._source.rest())
                return ""
            self._calls.content(piece)
            self._source.put_back(mark)
            self._source.hold()
        return mark

    def _block(self, mark: str) -> Wait[None]:
        self._calls.attempt()
        try:
            yield from self._format.read(self._source, self._calls)
        except NotACall as error:
            self._calls.broken(mark, error.unread)
        except Ended:
            self._calls.cut(self._format.markers, self._natural)
        else:
            self._calls.accept()
