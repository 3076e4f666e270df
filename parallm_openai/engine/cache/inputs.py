"""What one forward reads of a batch's rows, and where it computes logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tokens of one forward, for the first rows of a batch.

    Of `ids` `[rows, width]` the first `counts[i]` are row i's own, the others padding. Logits are computed for the last
    `wanted[i]` of the former: all rows' together, in the rows' order.
    """

    ids: mx.array
    counts: Sequence[int]
    wanted: Sequence[int]

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]], wanted: Sequence[int] | None = None) -> Inputs:
        """From each row's tokens, which may be none; with logits for all of them if `wanted` is not given."""
        counts = [len(own) for own in tokens]
        padded = np.zeros((len(tokens), max(counts)), dtype=np.int32)
        for row, own in enumerate(tokens):
            padded[row, : len(own)] = own
        return cls(mx.array(padded), counts, counts if wanted is None else wanted)

    @property
    def rows(self) -> int:
        return len(self.counts)

    @property
    def width(self) -> int:
        return int(self.ids.shape[1])

    def positions(self) -> mx.array | None:
        """The numbers, in `ids` laid out flat, of the tokens whose logits are computed; None if those are all."""
        width = self.width
        if all(wanted == width for wanted in self.wanted):
            return None
        ends = [row * width + count for row, count in enumerate(self.counts)]
        places = [at for end, wanted in zip(ends, self.wanted, strict=True) for at in range(end - wanted, end)]
        return mx.array(places, dtype=mx.int32)

    def row(self, row: int) -> Inputs:
        """One row's part, without padding."""
        count = self.counts[row]
        return Inputs(self.ids[row : row + 1, :count], [count], [self.wanted[row]])
