"""The one owner of a response while it is generated: it holds cancellation, deadline and the mapping of errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import TypeVar

from fastapi import Request as HttpRequest
from sse_starlette.sse import EventSourceResponse

from parallm_openai.api import errors
from parallm_openai.api.errors import ApiError
from parallm_openai.api.field_names import FieldNames
from parallm_openai.api.ndjson import LineSource
from parallm_openai.api.request_log import note_running, trace_of
from parallm_openai.api.route import BodyRequest
from parallm_openai.api.sse import DONE, Chunk, EventSource, json_chunk, until
from parallm_openai.api.state import state_of
from parallm_openai.settings import ServerSettings
from parallm_openai.text.description import ChatDescription, TextDescription
from parallm_openai.text.generation import Generation, start_generations
from parallm_openai.text.output import OutputDelta
from parallm_openai.text.prepare import Prepared
from parallm_openai.text.request_error import RequestError

T = TypeVar("T")


async def start_chat(request: HttpRequest, description: ChatDescription, names: FieldNames) -> RunningResponse:
    """Prepare a conversation and start its choices, all or none. Raises ApiError in the surface's names."""
    begin(request, description)
    with errors.in_names_of(names):
        return start(request, [await state_of(request).preparer.chat(description)], names)


async def start_texts(request: HttpRequest, description: TextDescription, names: FieldNames) -> RunningResponse:
    """The same for prompts as they are; one that is at fault is an error of the whole request."""
    begin(request, description)
    with errors.in_names_of(names):
        prepared = await state_of(request).preparer.text(description)
        for each in prepared:
            if isinstance(each, RequestError):
                raise each
        return start(request, [each for each in prepared if isinstance(each, Prepared)], names)


def begin(request: HttpRequest, description: ChatDescription | TextDescription) -> None:
    """Have the request's trace, if it has one, say what is asked for. Raises ApiError if the model cannot generate."""
    state_of(request).check_generates()
    if (traced := trace_of(request.scope)) is not None:
        body = request.parsed if isinstance(request, BodyRequest) else None
        traced.described(description, body.get("model") if isinstance(body, dict) else None)


def start(request: HttpRequest, prepared: Sequence[Prepared], names: FieldNames) -> RunningResponse:
    """Start all that is prepared, or nothing. Raises QueueFullError or EngineStoppedError."""
    state = state_of(request)
    generations = start_generations(state.engine, prepared)
    state.owners.note((each.request_id for each in generations), state.owner(request))
    running = RunningResponse(generations, names, request.state.deadline, state.settings)
    note_running(request.scope, running)
    return running


class RunningResponse:
    """The sequences of one request; whatever way this context is left, they end with it.

    Errors leave it as ApiError, in the surface's `names` of fields. What a route answers at once has the deadline
    of its route (`route.py`); `stream` holds what it sends later to the same.
    """

    def __init__(
        self, generations: Sequence[Generation], names: FieldNames, deadline: float, settings: ServerSettings
    ) -> None:
        self.generations = generations
        # Why it ended in the middle of its stream.
        self.failure: str | None = None
        self._names = names
        self._deadline = deadline
        self._settings = settings

    async def __aenter__(self) -> RunningResponse:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        if isinstance(error, Exception) and (known := errors.expected(error, self._names)) is not None:
            raise known from error

    def _cancel(self) -> None:
        for generation in self.generations:
            generation.cancel()

    async def deltas(self) -> AsyncIterator[tuple[int, OutputDelta]]:
        """What the sequences bring, as it comes, each with the index of its sequence."""
        if len(self.generations) == 1:
            async for delta in self.generations[0]:
                yield 0, delta
            return
        queue: asyncio.Queue[tuple[int, OutputDelta | Exception | None]] = asyncio.Queue()

        async def pump(index: int, generation: Generation) -> None:
            try:
                async for delta in generation:
                    queue.put_nowait((index, delta))
                queue.put_nowait((index, None))
            except Exception as error:
                queue.put_nowait((index, error))

        tasks = [asyncio.create_task(pump(index, each)) for index, each in enumerate(self.generations)]
        try:
            running = len(tasks)
            while running:
                index, item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield index, item
        finally:
            for task in tasks:
                task.cancel()

    def error_of(self, error: Exception) -> ApiError:
        """How a response ends that `error` has ended; an error that nobody expected is logged."""
        if isinstance(error, TimeoutError):
            return errors.timed_out(self._settings.request_timeout)
        return errors.expected(error, self._names) or errors.unexpected(error)

    def stream(self, chunks: AsyncIterator[Chunk]) -> EventSourceResponse:
        """A response of chunks that ends in `[DONE]`, after one chunk with the error if anything fails."""

        async def all_chunks() -> AsyncIterator[Chunk]:
            # The headers are out: OpenAI's SDK reads an error from a data chunk, never from an `event: error`.
            async for chunk in self._guarded(chunks, lambda error: json_chunk(error.body)):
                yield chunk
            yield DONE

        return EventSource(all_chunks(), self._settings, self)

    def stream_events(
        self, chunks: AsyncIterator[Chunk], failed: Callable[[ApiError], Chunk], ping: Chunk | None = None
    ) -> EventSourceResponse:
        """A response of these chunks alone; `failed` makes the last one if anything fails."""
        return EventSource(self._guarded(chunks, failed), self._settings, self, ping)

    def stream_lines(self, lines: AsyncIterator[str], failed: Callable[[ApiError], str]) -> LineSource:
        """The same of lines."""
        return LineSource(self._guarded(lines, failed), self)

    async def _guarded(self, items: AsyncIterator[T], failed: Callable[[ApiError], T]) -> AsyncIterator[T]:
        try:
            async for item in until(self._deadline, items):
                yield item
        except Exception as error:
            self._cancel()
            known = self.error_of(error)
            self.failure = known.message
            yield failed(known)
