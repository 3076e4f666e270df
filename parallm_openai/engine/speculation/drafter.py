"""The drafter protocol: who guesses tokens for the target to verify. Imports no MLX."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    # Whether it needs the target's hidden states: the engine then keeps those of each row's newest tokens.
    reads_hidden_states = False

    @property
    def recurrent(self) -> bool:
        """Whether its model has recurrent layers."""
        return self.runner is not None and self.runner.ragged is not None and self.runner.ragged.recurrent

    @property
    def computes(self) -> bool:
        """Whether it can guess for any row; else only for those that it has `chances` of."""
        return True

    def available(self, row: Row, limit: int) -> int:
        """How many tokens, up to `limit`, it could guess for a row: fewer only if that costs nothing to find out."""
        return limit

    def chances(self, row: Row, count: int) -> Sequence[float] | None:
        """For each of the next `count` tokens that it could copy for a row, the chance that all up to it are accepted.

        None if it has nothing to copy.
        """
        return None

    def read_along(self, batch: Batch, rows: Collection[Row], width: int) -> None:
        """Compute up to `width` more tokens of these rows' prompts, which the target has computed just now."""

    def propose(
        self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance, copied: Sequence[bool] = ()
    ) -> Drafts:
        """Up to `lengths[i]` tokens to follow the last one of the batch's i-th row, `copied` or computed.

        Under "coupled" acceptance sampled rows draw with the target's noise; under "rejection" with noise of their
        own, and their drafts carry `log_q`.
        """
        return Drafts.none(len(batch.rows))

    def learn(self, row: Row, tokens: Sequence[int]) -> None:
        """A row goes on with these tokens, whatever was guessed; they are not part of it yet."""

    def ended(self, row: Row, config: EngineConfig) -> None:
        """A row has come to its end."""

    def evict(self, config: EngineConfig) -> None:
        """Keep no more of earlier rows than the configuration allows; at the beginning of each step."""
