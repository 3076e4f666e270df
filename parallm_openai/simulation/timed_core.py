"""The real engine, which notes what its forwards took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.build import build_core
from parallm_openai.engine.row import TARGET, Row
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.engine.speculation.portfolio import Portfolio
from parallm_openai.engine.step import EngineCore
from parallm_openai.engine.verification import Verification
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import EngineConfig


class Forward(NamedTuple):
    """What the target computed, in the shape that `Costs` are asked for, and the seconds that it took.

    These include sampling: of each position of a decode step, and of the first token of each prompt that ends.
    """

    kind: Literal["prefill", "verify"]
    rows: int
    width: int
    context: int
    seconds: float


class TimedCore(EngineCore):
    """`forwards` are those of the target, since the start or since somebody has cleared them."""

    forwards: list[Forward]

    @classmethod
    def of(
        cls, model: LoadedModel, config: EngineConfig, draft: LoadedModel | None, clock: Callable[[], float]
    ) -> TimedCore:
        """An engine that only the draft model drafts for: copies depend on what is written, which no simulation
        knows."""
        built = build_core(model, config, draft)
        core = cls(
            built.target,
            built.drafter.computing if isinstance(built.drafter, Portfolio) else built.drafter,
            config,
            built.scheduler.traits,
            context_length=built.context_length,
            eos_ids=built.eos_ids,
            clock=clock,
        )
        core.forwards = []
        return core

    def _compute_prompts(self, batch: Batch, width: int, began: float) -> None:
        widest = max(min(width, row.unread) for row in batch.rows)
        with self._timed("prefill", batch.rows, widest):
            super()._compute_prompts(batch, width, began)

    def _verify(self, batch: Batch, drafts: Drafts, config: EngineConfig) -> list[Verification]:
        with self._timed("verify", batch.rows, drafts.longest + 1):
            return super()._verify(batch, drafts, config)

    @contextmanager
    def _timed(self, kind: Literal["prefill", "verify"], rows: Sequence[Row], width: int) -> Iterator[None]:
        count, context = len(rows), max(row.computed[TARGET].length for row in rows)
        began = self.clock()
        yield
        self.forwards.append(Forward(kind, count, width, context, self.clock() - began))
