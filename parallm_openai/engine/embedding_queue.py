"""Inputs that wait for their embeddings: the engine's thread takes those of like length together.

Requests take turns, so that a short one does not wait for all inputs of a long one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np

from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.engine.embedder import Embedder
from parallm_openai.engine.row import describe
from parallm_openai.engine.worker import EngineStoppedError, QueueFullError

log = logging.getLogger(__name__)

# As many inputs as OpenAI takes in a request, for some requests.
MOST_WAITING = 4 * 2048
# Among so many of the next inputs those of like length are looked for.
WINDOW = 256
# Padding may at most double what a forward computes.
LIKE = 2


NO_NUMBERS = "the model's states are not numbers"


class EmbeddingFailed(Exception):
    """Inputs could not be computed."""


@dataclass(eq=False)
class _Input:
    tokens: tuple[int, ...]
    result: asyncio.Future[np.ndarray]


class EmbeddingQueue:
    """Between the event loop, which asks, and the engine's thread, which does one forward for each call."""

    def __init__(self, engine: AsyncEngine, embedder: Embedder) -> None:
        self._engine = engine
        self._embedder = embedder
        # The inputs of each request; the one whose turn it is comes first.
        self._waiting: deque[deque[_Input]] = deque()
        self._called = False
        self._lock = threading.Lock()

    async def embed(self, inputs: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The embedding of each. Raises QueueFullError, EngineStoppedError or EmbeddingFailed.

        If the caller is cancelled or one of them fails, what has not been computed is left out.
        """
        loop = asyncio.get_running_loop()
        asked = [_Input(tokens, loop.create_future()) for tokens in inputs]
        with self._lock:
            waiting = sum(map(len, self._waiting))
            if waiting + len(asked) > MOST_WAITING:
                raise QueueFullError(f"{waiting} inputs wait already")
            self._waiting.append(deque(asked))
            idle, self._called = not self._called, True
        if idle:
            self._call()
        try:
            return await asyncio.gather(*(each.result for each in asked))
        finally:
            for each in asked:
                each.result.cancel()

    def _call(self) -> None:
        """Have the engine's thread do the next forward; if it does nothing any more, nobody waits for it."""
        try:
            self._engine.call(self._forward)
        except EngineStoppedError as error:
            with self._lock:
                left = [each for request in self._waiting for each in request]
                self._waiting.clear()
                self._called = False
            for each in left:
                _settle(each, error)

    # The engine's thread

    def _forward(self) -> None:
        batch = self._take()
        if not batch:
            return
        for each, outcome in zip(batch, self._outcomes(batch), strict=True):
            _settle(each, outcome)
        self._call()

    def _outcomes(self, batch: Sequence[_Input]) -> list[np.ndarray | EmbeddingFailed]:
        """An embedding for each input, or why there is none: if a forward fails, each gets one of its own."""
        try:
            vectors = self._embedder.embed([each.tokens for each in batch])
        except BaseException as error:  # For want of memory, as a rule.
            if len(batch) > 1:
                return [outcome for each in batch for outcome in self._outcomes([each])]
            log.error("an input could not be embedded", exc_info=error)
            return [EmbeddingFailed(describe(error))]
        return [vector if np.isfinite(vector).all() else EmbeddingFailed(NO_NUMBERS) for vector in vectors]

    def _take(self) -> list[_Input]:
        """The oldest input of the next request, and others of like length for which a forward has room."""
        with self._lock:
            self._keep(lambda each: not each.result.cancelled())
            if not self._waiting:
                self._called = False
                return []
            in_turn = (each for round in zip_longest(*self._waiting) for each in round if each is not None)
            batch = self._together(list(islice(in_turn, WINDOW)))
            self._waiting.rotate(-1)
            chosen = set(batch)
            self._keep(lambda each: each not in chosen)
            return batch

    def _keep(self, wanted: Callable[[_Input], bool]) -> None:
        requests = (deque(filter(wanted, request)) for request in self._waiting)
        self._waiting = deque(filter(None, requests))

    def _together(self, window: Sequence[_Input]) -> list[_Input]:
        oldest = len(window[0].tokens)
        like = [each for each in window[1:] if oldest / LIKE <= len(each.tokens) <= oldest * LIKE]
        batch, longest = [window[0]], oldest
        for each in sorted(like, key=lambda each: abs(len(each.tokens) - oldest)):
            longest = max(longest, len(each.tokens))
            if longest * (len(batch) + 1) > self._embedder.chunk:
                break
            batch.append(each)
        return batch


def _settle(asked: _Input, outcome: np.ndarray | Exception) -> None:
    """Tell the event loop how it ended, unless that has ended before."""

    def settle() -> None:
        if asked.result.done():
            return
        if isinstance(outcome, Exception):
            asked.result.set_exception(outcome)
        else:
            asked.result.set_result(outcome)

    loop = asked.result.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)
