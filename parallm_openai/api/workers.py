"""Where a server does what takes long: on threads, so that its event loop goes on, and within bounds of time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from parallm_openai.api.timed_threads import TimedThreads, TooBusy
from parallm_openai.text.grammar.compiler import Grammars
from parallm_openai.text.grammar.token_grammar import TokenGrammar
from parallm_openai.text.request_error import RequestError

T = TypeVar("T")

# Work on more characters or tokens than this is kept apart from others.
LARGE_TEXT = 100_000


@dataclass(frozen=True)
class Threads:
    """The workers (`text/workers.py`) of a server. A chat template may take `template_timeout` seconds."""

    grammars: Grammars
    template_timeout: float
    rendering: TimedThreads = field(default_factory=TimedThreads)
    # Held while something large is tokenised.
    large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def render(self, work: Callable[[], str]) -> str:
        try:
            return str(await self.rendering.run(self.template_timeout, work))
        except TimeoutError as error:
            sentence = "The chat template was not through with these messages after {} seconds."
            seconds = f"{self.template_timeout:g}"
            raise RequestError(sentence, seconds, field="messages", kind="invalid_messages") from error
        except TooBusy as error:
            sentence = "The server is busy with other chat templates. Please try again."
            raise RequestError(sentence, kind="busy") from error

    async def tokenize(self, size: int, work: Callable[[], T]) -> T:
        """Something large waits for other large work only, and nothing else waits for it."""
        if size <= LARGE_TEXT:
            return await asyncio.to_thread(work)
        async with self.large:
            return await asyncio.to_thread(work)

    async def compile(self, work: Callable[[], TokenGrammar]) -> TokenGrammar:
        """A large schema takes seconds to compile, on a thread that nothing else needs."""
        return await asyncio.wrap_future(self.grammars.submit(work))
