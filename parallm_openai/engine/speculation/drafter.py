"""The drafter protocol: who guesses tokens for the target to verify. Imports no MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.row import Row
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.settings import Acceptance

if TYPE_CHECKING:
    from parallm_openai.engine.runner import ModelRunner


class Drafter:
    """Guesses nothing; the base of every drafter.

    What a drafter knows of a row hangs on the row. One with a model of its own names its `runner`: the engine then
    keeps a cache for it in every batch, moves rows in it as in the target's, and has it prefill.
    """

    name = "none"
    runner: ModelRunner | None = None

    def available(self, row: Row, limit: int) -> int:
        """How many tokens, up to `limit`, it could guess for a row: fewer only if that costs nothing to find out."""
        return limit

    def propose(self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance) -> Drafts:
        """Up to `lengths[i]` tokens to follow the last one of the batch's i-th row.

        Under "coupled" acceptance sampled rows draw with the target's noise; under "rejection" with noise of their
        own, and their drafts carry `log_q`.
        """
        return Drafts.none(len(batch.rows))
