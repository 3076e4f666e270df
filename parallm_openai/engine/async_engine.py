"""The bridge between the engine's thread and asyncio: each request's outputs as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from parallm_openai.engine.build import DraftSource, build_core
from parallm_openai.engine.request import FinishReason, Output, Request
from parallm_openai.engine.scheduler import ModelTraits
from parallm_openai.engine.timeline import Timeline
from parallm_openai.engine.worker import Engine, EngineStoppedError, QueueFullError
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import EngineConfig

# At the end, requests wait so long for the step that they are in.
STEP_SECONDS = 1.0


class RequestStream:
    """One request's outputs as an async iterator; ends after the one with a finish reason."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request = request
        self._engine = engine
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()
        self._ended = False

    def put(self, output: Output) -> None:
        self._outputs.put_nowait(output)

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        output = await self._outputs.get()
        self._ended = output.finish_reason is not None
        return output

    def cancel(self, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Free the row before the next step; safe to call at any time, more than once."""
        if not self._ended:
            self._engine.cancel(self.request.id, reason)


class AsyncEngine:
    """The engine as one event loop sees it."""

    def __init__(self, model: LoadedModel, config: EngineConfig, draft: DraftSource = None) -> None:
        self.vocab_size = model.vocab_size
        self.on_failure: Callable[[], None] = lambda: None
        self._streams: dict[int, RequestStream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        build = partial(build_core, model, config, draft)
        self._engine = Engine(build, self._deliver, lambda: self.on_failure())

    @property
    def config(self) -> EngineConfig:
        return self._engine.config

    @property
    def context_length(self) -> int:
        return self._engine.core.context_length

    @property
    def traits(self) -> ModelTraits:
        return self._engine.core.scheduler.traits

    @property
    def failed(self) -> bool:
        """Whether the engine's thread has ended by an error: nothing can be generated any more."""
        return self._engine.failure is not None

    def fail(self, error: BaseException) -> None:
        """Nothing can be generated any more: every request ends with this error, and `on_failure` is called."""
        self._engine.fail(error)

    @property
    def capacity(self) -> int:
        """How many requests may run and wait together."""
        return self._engine.capacity

    def open(self, requests: Sequence[Request]) -> list[RequestStream]:
        """Queue requests from the event loop, all or none. Raises QueueFullError or EngineStoppedError."""
        self._loop = asyncio.get_running_loop()
        streams = [RequestStream(self._engine, request) for request in requests]
        self._streams.update((stream.request.id, stream) for stream in streams)
        try:
            self._engine.submit_all(requests)
        except (QueueFullError, EngineStoppedError):
            for request in requests:
                del self._streams[request.id]
            raise
        return streams

    def call(self, work: Callable[[], None]) -> None:
        """Have the engine's thread do something else with MLX before its next step. Raises EngineStoppedError."""
        self._engine.call(work)

    def configure(self, **changes: Any) -> EngineConfig:
        return self._engine.configure(**changes)

    def stats(self) -> dict[str, Any]:
        return self._engine.stats()

    @property
    def timeline(self) -> Timeline:
        """The last steps, row by row."""
        return self._engine.timeline

    async def shutdown(self, timeout: float) -> None:
        """Take no more requests, let those running finish for `timeout` seconds, cancel the rest."""
        self._engine.refuse_new()
        deadline = time.monotonic() + timeout
        while self._engine.unfinished and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self._engine.begin_stop()
        # Not in the loop's pool of threads: whatever else runs there could keep this waiting.
        await self._until_ended(STEP_SECONDS)
        # A step may take long, and nobody need wait for it to learn that there is no more to come.
        for request_id in list(self._streams):
            self._dispatch([Output(request_id, finish_reason=FinishReason.CANCELLED)])
        await self._until_ended()
        self._engine.stop()

    async def _until_ended(self, timeout: float = float("inf")) -> None:
        deadline = time.monotonic() + timeout
        # At least once, so that what the thread has handed over is dispatched.
        await asyncio.sleep(0)
        while not self._engine.ended and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def _deliver(self, outputs: list[Output]) -> None:
        # One wake-up of the loop for the whole step.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, outputs)

    def _dispatch(self, outputs: list[Output]) -> None:
        for output in outputs:
            done = output.finish_reason is not None
            stream = self._streams.pop(output.request_id, None) if done else self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)
