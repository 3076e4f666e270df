"""A working copy of who is where, on which the scheduler draws up a step before anything happens."""

from __future__ import annotations

from collections.abc import Sequence

from parallm_openai.engine.batch import Bucket, padded_tokens, padding
from parallm_openai.engine.plan import Admission
from parallm_openai.engine.row import Row


class Occupancy:
    """The rows of each bucket as they will be at one point of a planned step, and what prefilling rows still read."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.prefilling = {bucket: list(bucket.prefilling.rows) for bucket in buckets}
        self.decoding = {bucket: list(bucket.decoding.rows) for bucket in buckets}
        self.unread = {row: row.unread for rows in self.prefilling.values() for row in rows}
        self.keep_at = {row: row.keep_at for row in self.unread}

    @property
    def _groups(self) -> list[list[Row]]:
        return [*self.prefilling.values(), *self.decoding.values()]

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self._groups for row in rows]

    @property
    def count(self) -> int:
        return sum(map(len, self._groups))

    @property
    def padded_tokens(self) -> int:
        return sum(map(padded_tokens, self._groups))

    def padding(self, bucket: Bucket, newcomer: Row | None = None) -> int:
        """The padding of a bucket's decoding rows, with `newcomer` if one is given."""
        return padding([*self.decoding[bucket], *([newcomer] if newcomer else [])])

    def admit(self, admission: Admission) -> None:
        """A row begins to prefill, perhaps after tokens that are stored."""
        row = admission.row
        self.prefilling[admission.bucket].append(row)
        self.unread[row] = len(row.tokens) - admission.length
        self.keep_at[row] = admission.keep_at

    def until_kept(self, row: Row) -> int:
        """How many tokens a row may read at once: up to the next length at which it keeps its states."""
        read = len(row.tokens) - self.unread[row]
        return min((at - read for at in self.keep_at[row] if at > read), default=self.unread[row])

    def start_decoding(self, row: Row, source: Bucket, target: Bucket) -> None:
        """A row has computed its prompt; one that may generate nothing ends with that."""
        self.prefilling[source].remove(row)
        if row.remaining > 0:
            self.decoding[target].append(row)

    def remove(self, row: Row) -> None:
        """A decoding row leaves."""
        for rows in self.decoding.values():
            if row in rows:
                rows.remove(row)
