"""The drafter protocol: who guesses tokens for the target to verify. Imports no MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.row import Row
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.settings import Acceptance, EngineConfig

if TYPE_CHECKING:
    from parallm_openai.engine.runner import ModelRunner


class Drafter:
    """Guesses nothing; the base of every drafter.

    What a drafter knows of a row hangs on the row. One with a model of its own names its `runner`: the engine then
    keeps a cache for it in every batch, moves rows in it as in the target's, and has it prefill.
    """

    name = "none"
    runner: ModelRunner | None = None

    @property
    def recurrent(self) -> bool:
        """Whether its model has recurrent layers."""
        return self.runner is not None and self.runner.ragged is not None and self.runner.ragged.recurrent

    def available(self, row: Row, limit: int) -> int:
        """How many tokens, up to `limit`, it could guess for a row: fewer only if that costs nothing to find out."""
        return limit

    def chances(self, row: Row, count: int) -> Sequence[float] | None:
        """For each of the next `count` tokens that it would guess for a row, the chance that all up to it are accepted.

        None if how many of the row's guesses were accepted so far says it best.
        """
        return None

    def propose(self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance) -> Drafts:
        """Up to `lengths[i]` tokens to follow the last one of the batch's i-th row.

        Under "coupled" acceptance sampled rows draw with the target's noise; under "rejection" with noise of their
        own, and their drafts carry `log_q`.
        """
        return Drafts.none(len(batch.rows))

    def learn(self, row: Row, drafted: int, accepted: int) -> None:
        """So many of the tokens guessed for a row in this step were accepted; they are not part of it yet."""

    def ended(self, row: Row, config: EngineConfig) -> None:
        """A row has come to its end."""

    def evict(self, config: EngineConfig) -> None:
        """Keep no more of earlier rows than the configuration allows; at the beginning of each step."""
