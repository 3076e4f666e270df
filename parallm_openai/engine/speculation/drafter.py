"""The drafter protocol: who guesses tokens for the target to verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from parallm_openai.config import Acceptance
from parallm_openai.engine.kv_cache import RaggedCache
from parallm_openai.engine.row import Row


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens. `log_q` holds the distribution each was drawn from, `[vocab]` logarithms,
    where acceptance needs it; a guess without one stands for certainty. `informed` is false
    where the drafter had not read all of the row's text.
    """

    tokens: tuple[int, ...] = ()
    log_q: tuple[mx.array, ...] = ()
    informed: bool = True

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> Draft:
        return Draft(self.tokens[:length], self.log_q[:length], self.informed)


NO_DRAFT = Draft()


class Drafter:
    """Guesses nothing; the base of every drafter.

    One drafter serves one lane. Rows come and go as in the target's caches: `admit` adds a
    prefilling row at the end, `promote` and `move` copy one to the end of the decoding rows
    (the source is told to drop it), a dropped row is replaced by the last. A drafter
    without state of its own needs `propose` alone.
    """

    name = "none"
    # Whether a proposal costs next to nothing, so that the draft length is better chosen after it.
    free = False

    def admit(self, kept: RaggedCache | None = None, length: int = 0) -> None:
        """A new row begins to prefill, after the first `length` tokens of what `copy` gave, if it gave any."""

    def copy(self, row: int, length: int) -> RaggedCache | None:
        """A cache with the first `length` tokens of a decoding row alone; None where it does not hold them."""
        return None

    def prefill(self, rows: Sequence[Row], width: int) -> None:
        """The first of the prefilling rows, those given, each read up to `width` more tokens."""

    def promote(self, source: Drafter, row: int) -> None:
        """A row that prefilled with `source`, of the same kind, begins to decode here."""

    def move(self, source: Drafter, row: int) -> None:
        """A row that decoded with `source`, of the same kind, goes on here."""

    def drop_prefilling(self, row: int) -> None:
        """A prefilling row leaves."""

    def drop_running(self, row: int) -> None:
        """A decoding row leaves."""

    def reset_prefill(self) -> None:
        """All prefilling rows are gone."""

    def reset_decode(self) -> None:
        """All decoding rows are gone."""

    def propose(
        self,
        rows: Sequence[Row],
        lengths: Sequence[int],
        limits: Sequence[int],
        acceptance: Acceptance = "coupled",
    ) -> list[Draft]:
        """Up to `limits[i]` tokens to follow the i-th decoding row's last one.

        `lengths` are the tokens that the target has committed of each row: what any
        cache of the drafter's own holds past them was rejected. Under "coupled" acceptance
        sampled rows draw with the target's noise; under "rejection" with noise of their own,
        and their drafts carry `log_q`.
        """
        return [NO_DRAFT] * len(rows)
