"""One family's way of writing tool calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

Tool = Mapping[str, Any]
"""A tool as the API gets it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""


@dataclass(frozen=True)
class ToolCall:
    """A call; `arguments` is JSON text."""

    name: str
    arguments: str


Parser = Callable[[str, Sequence[Tool]], list[ToolCall]]


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
    """Calls stand in blocks between `start` and `end`.

    An empty `start` means that a block is the whole answer, if it begins as `opens` says; an
    empty `end` that it goes on to the end. Where arguments are JSON, `head` matches what stands
    before each call's, with its `name`, so that they can be streamed. Otherwise, and where no head is found,
    `parse` reads a whole block. It raises ValueError for what it cannot read.
    """

    name: str
    start: str
    end: str
    head: regex.Pattern[str] | None = None
    parse: Parser | None = None
    opens: regex.Pattern[str] | None = None
    wording: Wording | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(marker for marker in (self.start, self.end) if marker)


def json_arguments(arguments: Any) -> str:
    """Arguments as JSON text, whatever a parser made of them."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
