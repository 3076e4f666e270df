"""What a drafter guesses for the rows of a batch. Imports no MLX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass
class Drafts:
    """`lengths[i]` guessed tokens for the i-th row of a batch.

    `ids` `[rows, longest]` holds them, padded, if a device computes them: they can be verified before anybody on the
    host knows them. `log_q` holds for each row the distributions that its tokens were drawn from, `[vocab]` logarithms,
    if acceptance needs those; a guess without one stands for certainty. `waits` counts how often the host waited for
    the device meanwhile.
    """

    lengths: Sequence[int]
    ids: mx.array | None = None
    log_q: Sequence[Sequence[mx.array]] = field(default_factory=list)
    waits: int = 0

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]]) -> Drafts:
        """Guesses that the host has made."""
        drafts = cls([len(own) for own in tokens])
        drafts.tokens = [tuple(own) for own in tokens]
        return drafts

    @classmethod
    def none(cls, rows: int) -> Drafts:
        return cls.of([()] * rows)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def tokens(self) -> list[tuple[int, ...]]:
        """Each row's guesses; waits for the device if it still computes them."""
        rows = np.array(self.ids).tolist() if self.longest else [()] * len(self.lengths)
        return [tuple(row[:length]) for row, length in zip(rows, self.lengths, strict=True)]
