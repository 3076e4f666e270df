"""Where the slow parts of preparing a request run: on threads for a server, in the caller's own for a program."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from parallm_openai.text.grammar.token_grammar import TokenGrammar

T = TypeVar("T")


class Workers(Protocol):
    """Runs work that may take long. Each method returns what the work returns and raises what it raises."""

    async def render(self, work: Callable[[], str]) -> str:
        """Render a chat template, which is a program of its own. Raises RequestError if there is no time for it."""

    async def tokenize(self, size: int, work: Callable[[], T]) -> T:
        """Do something with `size` characters or tokens."""

    async def compile(self, work: Callable[[], TokenGrammar]) -> TokenGrammar:
        """Compile a grammar."""


class Inline:
    """Runs everything at once, on the caller's own thread."""

    async def render(self, work: Callable[[], str]) -> str:
        return work()

    async def tokenize(self, size: int, work: Callable[[], T]) -> T:
        return work()

    async def compile(self, work: Callable[[], TokenGrammar]) -> TokenGrammar:
        return work()


def run_inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, as those are that run on `Inline`; needs no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    coroutine.close()
    raise RuntimeError("the coroutine waits for something")
