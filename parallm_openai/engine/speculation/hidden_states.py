"""The target's hidden states of a row's newest tokens, for a head that drafts from them. Imports no MLX.

Like keys and values they are written at each row's length, over what was rolled back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

# A head that is further behind than this would start with fewer.
KEPT = 48


@dataclass(frozen=True, slots=True)
class Piece:
    """Those of `count` tokens from the row's `start`-th on: in `states` `[rows, width, hidden]`, laid out flat, from
    `place` on."""

    start: int
    count: int
    states: mx.array
    place: int

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(slots=True)
class HiddenStates:
    """A row's pieces, each of which begins where the one before it ends."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def start(self) -> int:
        """The first token whose state is here."""
        return self.pieces[0].start

    def write(self, piece: Piece) -> None:
        """Add the states of a forward, which take the place of those at and after its first token."""
        while self.pieces and self.pieces[-1].start >= piece.start:
            self.pieces.pop()
        if self.pieces and self.pieces[-1].end > piece.start:
            self.pieces[-1] = replace(self.pieces[-1], count=piece.start - self.pieces[-1].start)
        self.pieces.append(piece)
        while self.pieces[0].end <= piece.start - KEPT:
            self.pieces.pop(0)

    def forget(self, before: int) -> None:
        """Drop those of the first `before` tokens, as far as that drops whole pieces."""
        while self.pieces and self.pieces[0].end <= before:
            self.pieces.pop(0)

    def compact(self) -> None:
        """Keep the newest states alone, once the prompt whose array they are in is no longer wanted."""
        import mlx.core as mx  # The scheduler, which imports this, does without.

        if not self.pieces:
            return
        piece = self.pieces[-1]
        count = min(KEPT, piece.count)
        first = piece.place + piece.count - count
        flat = piece.states.reshape(-1, piece.states.shape[-1])
        # A view would keep the whole array.
        newest = mx.contiguous(flat[first : first + count])[None]
        mx.eval(newest)
        self.pieces = [Piece(piece.end - count, count, newest, 0)]

    def of(self, start: int, count: int) -> Iterator[tuple[mx.array, int]]:
        """For each of so many tokens, an array and the state's number in it, laid out flat."""
        for piece in self.pieces:
            first, last = max(start, piece.start), min(start + count, piece.end)
            for token in range(first, last):
                yield piece.states, piece.place + token - piece.start
