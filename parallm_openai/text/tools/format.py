"""One family's way of writing tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallm_openai.text.tools.calls import Calls
    from parallm_openai.text.tools.source import Source, Wait

Tool = Mapping[str, Any]
"""A tool in OpenAI's form: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

Reader = Callable[["Source", "Calls"], "Wait[None]"]
"""Reads a block of calls from a Source into Calls. Raises NotACall if the text is no call."""


@dataclass(frozen=True)
class Wording:
    """The text around the JSON arguments of a call: a grammar that enforces calls needs it.

    `before` has `NAME` in the place of the tool's name. Several calls stand in one block with `separator` between
    them, or each in a block of its own if `one_a_block`. A `single` format allows only one call in an answer.
    """

    before: str
    after: str
    separator: str = ""
    opening: str = ""
    closing: str = ""
    one_a_block: bool = False
    single: bool = False


@dataclass(frozen=True)
class ToolFormat:
    """Calls stand in blocks between `start` and `end`; `read` reads a block.

    If `start` is empty, a block begins the answer; if `end` is empty, it lasts to the end of the answer. A block also
    begins with one of `openings`, since models leave out the outer mark. `inner` are the other marks inside it. Marks
    that are tokens must reach the reader.
    """

    name: str
    start: str
    end: str
    read: Reader
    openings: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    wording: Wording | None = None

    @property
    def starts(self) -> tuple[str, ...]:
        return tuple(mark for mark in (self.start, *self.openings) if mark)

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(mark for mark in (self.start, self.end, *self.openings, *self.inner) if mark)
