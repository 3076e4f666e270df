"""The engine's step without its models: they take time on a clock of their own, and the answers are known before.

All else is the engine's own code: what is planned, admitted, preempted, stored and committed, and in which order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nextafter
from typing import Any, Protocol, cast

import mlx.core as mx

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.request import Output, Request
from parallm_openai.engine.row import DRAFT, TARGET, Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.scheduler import ModelTraits
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.engine.step import EngineCore
from parallm_openai.engine.verification import Verification
from parallm_openai.settings import Acceptance, EngineConfig
from parallm_openai.simulation.costs import Costs

# A guess that no answer has.
WRONG = -2


class Answer(Protocol):
    """What the target will say to a request, and how much of it would be guessed."""

    def tokens(self, generated: int, count: int) -> list[int]:
        """The next ones after so many."""

    def accepted(self, drafted: int) -> int:
        """How many of so many drafted tokens agree with them; asked once a draft."""


@dataclass
class DrawnAnswer:
    """One token again and again, of whose drafts each is accepted with the same chance, up to the first that is not."""

    token: int
    chance: float
    rng: random.Random

    def tokens(self, generated: int, count: int) -> list[int]:
        return [self.token] * count

    def accepted(self, drafted: int) -> int:
        return next((depth for depth in range(drafted) if self.rng.random() >= self.chance), drafted)


@dataclass
class VirtualClock:
    """Seconds since the simulation began."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class NoArrays:
    """A ragged cache of keys and values, less those: a row can begin with as many tokens as are stored."""

    state_tokens = 0

    def append_row(self) -> None: ...

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None: ...

    def remove_row(self, slot: int, last_length: int) -> None: ...

    def copy_row(self, slot: int, length: int) -> NoArrays:
        return self

    def keep(self, slot: int, length: int) -> None: ...

    def beginning(self, slot: int, length: int) -> int:
        return length

    def reserve(self, rows: int) -> None: ...


class SimulatedRunner(ModelRunner):
    """A model that computes nothing, in the time that a real one would take."""

    def __init__(self, role: str, clock: VirtualClock, seconds: Callable[[int, int, int], float]) -> None:
        self.role, self.ragged, self.vocab_size, self.keeps_hidden_states = role, None, None, False
        self._clock, self._seconds = clock, seconds
        # It holds nothing, so one does for all.
        self._cache = cast(BatchCache, NoArrays())

    def prefill_cache(self) -> BatchCache:
        return self._cache

    def decode_cache(self) -> BatchCache:
        return self._cache

    def prefill(self, batch: Batch, chunks: Sequence[Sequence[int]], wanted: Sequence[int] | None = None) -> Any:
        rows = batch.rows[: len(chunks)]
        context = max(row.computed[self.role].length for row in rows)
        self._clock.advance(self._seconds(len(rows), max(map(len, chunks)), context))
        for row, chunk in zip(rows, chunks, strict=True):
            row.computed[self.role].length += len(chunk)


class SimulatedDraftModel(DraftModel):
    """Reads what the engine's draft model would read, and guesses what is known to come.

    When it drafts, and how much of a row it then has to read, is the draft model's own code.
    """

    def __init__(self, clock: VirtualClock, costs: Costs, answers: Mapping[int, Answer]) -> None:
        self.runner = SimulatedRunner(DRAFT, clock, costs.draft_prefill)
        self.context_length = inf
        self._clock, self._costs, self._answers = clock, costs, answers

    def _draft(self, batch: Batch, lengths: Sequence[int], width: int, acceptance: Acceptance) -> Drafts:
        context = max(row.computed[DRAFT].length for row in batch.rows)
        self._clock.advance(self._costs.draft(len(batch.rows), [width, *[1] * (max(lengths) - 1)], context))
        for row, length in zip(batch.rows, lengths, strict=True):
            row.computed[DRAFT].length += min(width, self._unread(row)) + max(0, length - 1)
        return Drafts.of([self._guess(row, length) for row, length in zip(batch.rows, lengths, strict=True)])

    def _guess(self, row: Row, length: int) -> list[int]:
        answer = self._answers[row.id]
        agreed = answer.accepted(length) if length else 0
        return [*answer.tokens(row.generated, agreed), *[WRONG] * (length - agreed)]


@dataclass
class Emitted:
    """What a request has been given by a time."""

    request: int
    tokens: int
    at: float
    cached: int
    ended: bool


@dataclass
class _Outbox:
    """Outputs, with the time at which each went out."""

    clock: VirtualClock
    emitted: list[Emitted] = field(default_factory=list)

    def put(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(f"a simulated request failed: {output.error}")
            ended = output.finish_reason is not None
            self.emitted.append(
                Emitted(output.request_id, len(output.tokens), self.clock.now, output.cached_prompt_tokens, ended)
            )

    def take(self) -> list[Emitted]:
        taken, self.emitted = self.emitted, []
        return taken


class SimulatedCore(EngineCore):
    """One replica's engine. `drafts` says whether a draft model drafts."""

    clock: VirtualClock

    def __init__(
        self, config: EngineConfig, traits: ModelTraits, costs: Costs, *, context_length: int, drafts: bool
    ) -> None:
        clock = VirtualClock()
        self.costs = costs
        self.answers: dict[int, Answer] = {}
        super().__init__(
            SimulatedRunner(TARGET, clock, costs.prefill),
            SimulatedDraftModel(clock, costs, self.answers) if drafts else Drafter(),
            config,
            traits,
            context_length=context_length,
            eos_ids=frozenset(),
            clock=clock,
        )
        self._outbox = _Outbox(clock)
        self.deliver = self._outbox.put
        self._last_arrival = 0.0

    def submit(self, request: Request, answer: Answer) -> None:
        self.answers[request.id] = answer
        self.add(request)
        # Rows that come in the same instant still have an order.
        self._last_arrival = max(self.clock.now, nextafter(self._last_arrival, inf))
        self.rows[request.id].arrived = self._last_arrival

    def advance(self) -> list[Emitted]:
        """One step, at the end of which the clock stands when this returns."""
        rows = len(self.rows) - len(self.scheduler.waiting)
        outputs = self.step()
        self.clock.advance(self.costs.step(max(rows, len(self.rows) - len(self.scheduler.waiting))))
        self._outbox.put(outputs)
        emitted = self._outbox.take()
        for each in emitted:
            if each.ended:
                del self.answers[each.request]
        return emitted

    def _first_tokens(self, rows: Sequence[Row], logits: mx.array, places: list[int]) -> list[Verification]:
        return [self._sampled(row, ()) for row in rows]

    def _verify(self, batch: Batch, drafts: Drafts, config: EngineConfig) -> list[Verification]:
        context = max(row.computed[TARGET].length for row in batch.rows)
        self.clock.advance(self.costs.verify(len(batch.rows), drafts.longest + 1, context))
        return [self._sampled(row, draft) for row, draft in zip(batch.rows, drafts.tokens, strict=True)]

    def _sampled(self, row: Row, draft: tuple[int, ...]) -> Verification:
        return Verification(row, draft, self.answers[row.id].tokens(row.generated, len(draft) + 1))
