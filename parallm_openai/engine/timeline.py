"""The last steps that brought tokens, row by row, for whoever watches the engine: numbers only, no tokens, no text."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from parallm_openai.engine.request import Output

T = TypeVar("T")

# Some seconds of a small model, and some minutes of a large one. Steps of more rows than these are fewer.
STEPS_KEPT = 512
ROWS_A_STEP = 16


class Recent(Generic[T]):
    """The last items, of a weight of `size` in all; one thread adds them, any may read them."""

    def __init__(self, size: int, weight: Callable[[T], int] = lambda item: 1) -> None:
        self._size = size
        self._weight = weight
        self._held = 0
        self._items: deque[T] = deque()
        # A deque must not change while it is copied.
        self._lock = threading.Lock()

    def add(self, item: T) -> None:
        with self._lock:
            self._items.append(item)
            self._held += self._weight(item)
            while self._held > self._size:
                self._held -= self._weight(self._items.popleft())

    def items(self) -> tuple[T, ...]:
        """Oldest first."""
        with self._lock:
            return tuple(self._items)


class RowStep(NamedTuple):
    """What a step did for one request: tokens that were drafted, accepted, and appended to it."""

    request: int
    drafted: int
    accepted: int
    emitted: int


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step, or a forward at the end of prompts, which brings their first tokens.

    `at` is when it began, in seconds since the engine started.
    """

    number: int
    at: float
    draft_seconds: float
    verify_seconds: float
    rows: tuple[RowStep, ...]


class Timeline:
    """Steps are numbered from 1."""

    def __init__(self, steps: int = STEPS_KEPT) -> None:
        self._began = time.perf_counter()
        self._steps: Recent[Step] = Recent(steps * ROWS_A_STEP, lambda step: max(ROWS_A_STEP, len(step.rows)))
        self._count = 0

    @property
    def now(self) -> float:
        """On the clock of `Step.at`."""
        return time.perf_counter() - self._began

    def record(self, started: float, draft_seconds: float, verify_seconds: float, outputs: Sequence[Output]) -> None:
        """Add a step by the outputs of its rows; `started` is by `time.perf_counter`."""
        self._count += 1
        rows = tuple(RowStep(each.request_id, each.drafted, each.accepted, len(each.tokens)) for each in outputs)
        self._steps.add(Step(self._count, started - self._began, draft_seconds, verify_seconds, rows))

    def after(self, number: int) -> list[Step]:
        """The steps after the `number`-th that are still kept, oldest first."""
        return [step for step in self._steps.items() if step.number > number]
