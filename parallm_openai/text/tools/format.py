"""One family's way of writing tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallm_openai.text.tools.calls import Calls
    from parallm_openai.text.tools.source import Source, Wait

Tool = Mapping[str, Any]
"""A tool as the API gets it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

Reader = Callable[["Source", "Calls"], "Wait[None]"]
"""Takes a block of calls and tells them. Raises NotACall where what stands there is none."""


@dataclass(frozen=True)
class Wording:
    """How a call is put into words around its JSON arguments: what a grammar that enforces it needs.

    `before` has the place of the name as `NAME`. Several calls stand in one block, `separator`
    between them, or with `one_a_block` each in its own; `single` formats know one call an answer.
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
    """Calls stand in blocks between `start` and `end`, which `read` takes.

    An empty `start` means that a block begins the answer, an empty `end` that it goes on to the end. A block
    also begins with one of `openings`, since models leave the outer mark out. `inner` are its other marks:
    where they are tokens, they must come through.
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
