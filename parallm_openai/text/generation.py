"""Prepared sequences on an engine: started all or none, each then an iterator of its deltas."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.text import draws
from parallm_openai.text.events import Event
from parallm_openai.text.output import Counts, OutputDelta, OutputProcessor
from parallm_openai.text.prepare import Prepared

if TYPE_CHECKING:
    from parallm_openai.engine.async_engine import AsyncEngine, RequestStream


class Generation:
    """One sequence while it is generated; iterate over it for its deltas. Leaving it early frees its row."""

    def __init__(self, stream: RequestStream, processor: OutputProcessor) -> None:
        self._stream = stream
        self._processor = processor
        # The pieces of an answer that may be repeated must not depend on the steps that they came from.
        self._by_token = draws.is_repeatable()
        # By `time.perf_counter`: when it was queued, left the queue and had a token; None until then.
        self.queued_at = time.perf_counter()
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        self.finish_reason: FinishReason | None = None
        # Its events, if somebody wants them kept.
        self.kept: list[Event] | None = None

    @property
    def request_id(self) -> int:
        return self._stream.request.id

    @property
    def counts(self) -> Counts:
        return self._processor.counts

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        return self._stream.request.prompt

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        return self._processor.prompt_logprobs

    async def __aiter__(self) -> AsyncIterator[OutputDelta]:
        try:
            async for output in self._outputs():
                self.admitted_at = self.admitted_at or output.admitted_at
                delta = self._processor.process(output)
                self._note(delta)
                if delta.finish_reason is not None:
                    # A stop string or a completed call ends the sequence before the engine knows of it.
                    self._stream.cancel(delta.finish_reason)
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self.cancel()

    async def _outputs(self) -> AsyncIterator[Output]:
        async for output in self._stream:
            if not self._by_token:
                yield output
                continue
            for each in output.by_token():
                yield each

    def _note(self, delta: OutputDelta) -> None:
        if self.first_token_at is None and delta.tokens:
            self.first_token_at = time.perf_counter()
        self.finish_reason = delta.finish_reason
        if self.kept is not None:
            self.kept += delta.events

    def cancel(self) -> None:
        self._stream.cancel()


def start_generations(engine: AsyncEngine, wanted: Sequence[Prepared]) -> list[Generation]:
    """Start every choice of all that is prepared, or none: the choices of one prompt stand together.

    Raises QueueFullError or EngineStoppedError.
    """
    processors = [prepared.processor() for prepared in wanted for _ in prepared.params]
    streams = engine.open([request for prepared in wanted for request in prepared.requests()])
    return [Generation(stream, processor) for stream, processor in zip(streams, processors, strict=True)]
