"""Rows that share forwards. Imports no MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from parallm_openai.engine.cache.prefix import StoredRow
from parallm_openai.engine.row import TARGET, Computed, Row

if TYPE_CHECKING:
    from parallm_openai.engine.ahead import Ahead
    from parallm_openai.engine.cache.protocol import BatchCache
    from parallm_openai.engine.speculation.draft_length import DraftLength

Caches = Mapping[str, "BatchCache"]
"""A batch's caches by the role of the model that fills them."""


class Batch:
    """Rows in slots: `rows[i]` is in slot i of every cache, and knows so. A row that leaves is replaced by the last."""

    def __init__(self, make_caches: Callable[[], Caches] = dict) -> None:
        self._make_caches = make_caches
        self.rows: list[Row] = []
        self.caches = make_caches()
        # The next token of these rows, if the device is computing it already.
        self.ahead: Ahead | None = None

    def append(self, row: Row, stored: Mapping[str, StoredRow] | None = None, length: int = 0) -> None:
        """Add a row that is in no batch, after the first `length` tokens of what is stored of a prefix, if any is."""
        row.hidden.pieces.clear()
        for role, cache in self.caches.items():
            prefix = stored.get(role) if stored else None
            row.computed[role] = Computed()
            if prefix is None:
                cache.append_row()
            else:
                row.computed[role].length = beginning = prefix.cache.beginning(0, min(length, prefix.length))
                cache.append_row_from(prefix.cache, 0, beginning)
                # The one that was stored gives way to what this row will have computed.
                cache.keep(len(self.rows), beginning)
        self._add(row)

    def take(self, row: Row) -> None:
        """Move a row of another batch here."""
        source = row.batch
        assert source is not None
        for role, cache in self.caches.items():
            cache.append_row_from(source.caches[role], row.slot, row.computed[role].length)
        source.remove(row)
        self._add(row)

    def _add(self, row: Row) -> None:
        row.batch, row.slot = self, len(self.rows)
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        last = self.rows[-1]
        for role, cache in self.caches.items():
            cache.remove_row(row.slot, last.computed[role].length + self._in_flight(last, role))
        self.rows[row.slot], last.slot = last, row.slot
        self.rows.pop()
        row.batch, row.slot = None, -1
        if not self.rows:
            self.ahead = None

    def _in_flight(self, row: Row, role: str) -> int:
        """Tokens of a row that the device has sent off to compute, beyond what is committed."""
        return int(role == TARGET and self.ahead is not None and row in self.ahead.rows)

    def keep_beginnings(self, role: str) -> None:
        """Keep what later rows can begin with, of the rows that have just computed so much in a model's cache."""
        for row in self.rows:
            computed = row.computed[role]
            if computed.start == 0 and computed.length in row.keep_at:
                self.caches[role].keep(row.slot, computed.length)

    def copy_of(self, row: Row) -> dict[str, StoredRow]:
        """A copy of each cache's row, of those that hold it from its beginning and can copy it."""
        copies: dict[str, StoredRow] = {}
        for role, cache in self.caches.items():
            length = row.computed[role].length
            copied = cache.copy_row(row.slot, length) if row.computed[role].start == 0 else None
            if copied is not None:
                copies[role] = StoredRow(copied, length)
        return copies

    def reserve(self, rows: int) -> None:
        """Make room for so many rows at once."""
        for cache in self.caches.values():
            cache.reserve(rows)

    def clear(self) -> None:
        """Drop every row, and whatever state the caches are in."""
        for row in self.rows:
            row.batch, row.slot = None, -1
        self.rows = []
        self.caches = self._make_caches()
        self.ahead = None


@dataclass(eq=False)
class Bucket:
    """Rows of similar length, which prefill in one batch and decode in another.

    A forward's tensor is a rectangle: every row pays for the attention of the longest. So rows that are much longer
    than the others get a bucket of their own as soon as the padding costs more than a further forward.
    """

    draft_length: DraftLength
    prefilling: Batch = field(default_factory=Batch)
    decoding: Batch = field(default_factory=Batch)


def padded_tokens(rows: Sequence[Row]) -> int:
    """The tokens of the rectangle that holds these rows, padding included."""
    return len(rows) * max((len(row.tokens) for row in rows), default=0)


def padding(rows: Sequence[Row]) -> int:
    """The tokens of padding that a forward of these rows attends to."""
    return padded_tokens(rows) - sum(len(row.tokens) for row in rows)
