"""From generations to a response: merged streams, SSE frames, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from sse_starlette.sse import AppStatus, EventSourceResponse

from parallm_openai.api import errors
from parallm_openai.settings import ServerSettings
from parallm_openai.text.generation import Generation, GenerationError, TextDelta

log = logging.getLogger(__name__)

T = TypeVar("T")

# sse-starlette would cut streams half a second after SIGTERM; uvicorn's own time-out rules here.
AppStatus.disable_automatic_graceful_drain()

DONE = "[DONE]"
# No ends of lines in server-sent events, but some clients split there.
LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}

# For the OpenAPI document: what a route that may stream answers with.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or with `stream` its pieces", "content": {"text/event-stream": {}}}
}


async def merged(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, TextDelta]]:
    """The deltas of several generations as they come, with their index; leaving it cancels them all."""
    if len(generations) == 1:
        async for delta in generations[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, TextDelta | Exception | None]] = asyncio.Queue()

    async def pump(index: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                queue.put_nowait((index, delta))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, each)) for index, each in enumerate(generations)]
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
        for generation in generations:
            generation.cancel()


def frame(body: dict[str, Any]) -> dict[str, str]:
    return {"data": json.dumps(body, ensure_ascii=False, separators=(",", ":")).translate(LINE_ENDS)}


def event_stream(
    frames: AsyncIterator[dict[str, str]], generations: Sequence[Generation], settings: ServerSettings
) -> EventSourceResponse:
    """An SSE response that ends in `[DONE]`, after one frame with the error if anything fails."""
    return sse(_guarded(frames, generations, settings.request_timeout), settings)


def sse(frames: AsyncIterator[dict[str, str]], settings: ServerSettings) -> EventSourceResponse:
    """An SSE response of these frames and nothing else."""
    return EventSourceResponse(
        frames,
        sep="\n",
        # Our own connections are cut off before; other servers' are not.
        send_timeout=2 * settings.send_timeout,
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def within(items: AsyncIterator[T], timeout: float) -> AsyncIterator[T]:
    """The same items for `timeout` seconds at most, also where none comes; then raises TimeoutError."""
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                item = await anext(items)
        except StopAsyncIteration:
            return
        yield item


async def _guarded(
    frames: AsyncIterator[dict[str, str]], generations: Sequence[Generation], timeout: float
) -> AsyncIterator[dict[str, str]]:
    try:
        async for item in within(frames, timeout):
            yield item
    except Exception as error:
        # The headers are out: the SDK reads an error from a data frame, never from an `event: error`.
        yield frame(error_of(error, timeout).body)
    finally:
        for generation in generations:
            generation.cancel()
    yield {"data": DONE}


def error_of(error: Exception, timeout: float) -> errors.ApiError:
    """How a stream tells of what ended it; what nobody expected is logged."""
    match error:
        case errors.ApiError():
            return error
        case TimeoutError():
            return errors.timed_out(timeout)
        case GenerationError():
            return errors.generation_failed(error)
    log.error("a stream failed", exc_info=error)
    return errors.internal()


async def collected(work: Coroutine[Any, Any, T], generations: Sequence[Generation]) -> T:
    """The result of `work` on these generations, which end with it. Raises ApiError if one fails."""
    try:
        return await work
    except GenerationError as error:
        raise errors.generation_failed(error) from error
    finally:
        for generation in generations:
            generation.cancel()
