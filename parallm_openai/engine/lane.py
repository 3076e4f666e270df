"""Rows of similar length, which share their forwards.

A forward's tensor is a rectangle: every row pays for the attention of the longest. One
long row among many short ones would slow all of them down, so it gets a lane of its own
as soon as the waste costs more than reading the weights once more.
"""

from __future__ import annotations

import numpy as np

from parallm_openai.engine.prefix_cache import Prefix
from parallm_openai.engine.row import Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.speculation.drafter import Drafter


class Lane:
    """Its rows prefill in one rectangle and decode in another, with one drafter.

    The lists' order is the row order of the caches; a row that leaves is replaced by the last one.
    """

    def __init__(self, target: ModelRunner, drafter: Drafter) -> None:
        self.target = target
        self.drafter = drafter
        self.draft_length = DraftLength()
        self.prefilling: list[Row] = []
        self.running: list[Row] = []

    def admit(self, row: Row, prefix: Prefix | None = None, length: int = 0) -> None:
        """A new row begins to prefill, after the first `length` tokens of a kept sequence, if there is one."""
        self.target.admit(prefix.target if prefix else None, length)
        self.drafter.admit(prefix.draft if prefix else None, length)
        self.prefilling.append(row)

    def read(self, index: int) -> list[int]:
        """The tokens of a decoding row that are in the cache."""
        return self.running[index].tokens[: self.target.decoding.lengths[index]]

    def copy(self, index: int) -> Prefix | None:
        """What a decoding row has read, for requests that begin alike; None where state cannot be cut."""
        tokens = self.read(index)
        kept = self.target.copy(index, len(tokens))
        if kept is None:
            return None
        salt = self.running[index].request.cache_salt
        return Prefix(np.array(tokens), kept, self.drafter.copy(index, len(tokens)), salt)

    def promote(self, source: Lane, index: int) -> None:
        """A row that has read its prompt in `source` goes on to decode here."""
        if source is self:
            # The others that prefill come next.
            self.target.decoding.reserve(len(self.running) + len(self.prefilling))
        self.target.decoding.take(source.target.prefilling, index)
        self.drafter.promote(source.drafter, index)
        self.running.append(source.drop_prefilling(index))

    def move(self, source: Lane, index: int) -> None:
        """A decoding row of `source` goes on here."""
        self.target.decoding.take(source.target.decoding, index)
        self.drafter.move(source.drafter, index)
        self.running.append(source.drop_running(index))

    def drop_prefilling(self, index: int) -> Row:
        self.target.prefilling.remove(index)
        self.drafter.drop_prefilling(index)
        return take(self.prefilling, index)

    def drop_running(self, index: int) -> Row:
        self.target.decoding.remove(index)
        self.drafter.drop_running(index)
        return take(self.running, index)

    def clear_prefilling(self) -> list[Row]:
        """Drop every prefilling row and whatever state the caches are in."""
        rows, self.prefilling = self.prefilling, []
        self.target.reset_prefill()
        self.drafter.reset_prefill()
        return rows

    def clear_running(self) -> list[Row]:
        """Drop every decoding row and whatever state the caches are in."""
        rows, self.running = self.running, []
        self.target.reset_decode()
        self.drafter.reset_decode()
        return rows

    def waste(self, newcomer: Row | None = None) -> int:
        """Tokens of padding that a decode step's attention reads, with `newcomer` if one is given."""
        lengths = [len(row.tokens) for row in [*self.running, *([newcomer] if newcomer else [])]]
        return len(lengths) * max(lengths, default=0) - sum(lengths)

    @property
    def area(self) -> int:
        """Tokens that the rectangles hold, padding included."""
        return sum(
            len(rows) * max((len(r.tokens) for r in rows), default=0) for rows in (self.prefilling, self.running)
        )


def take(rows: list[Row], index: int) -> Row:
    """Remove a row; the last one takes its place."""
    row = rows[index]
    rows[index] = rows[-1]
    rows.pop()
    return row
