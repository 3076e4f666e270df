"""The drafter protocol: who guesses tokens for the target to verify."""

from __future__ import annotations

from collections.abc import Sequence

from parallm_openai.engine.row import Row

Draft = tuple[int, ...]


class Drafter:
    """Guesses nothing; the base of every drafter.

    Rows come and go as in the target's caches: `admit` adds a prefilling row at the end,
    `promote` moves one to the end of the decoding rows, a dropped row is replaced by the
    last. A drafter without state of its own needs `propose` alone.
    """

    name = "none"
    # Whether a proposal costs next to nothing, so that the draft length is better chosen after it.
    free = False

    def admit(self) -> None:
        """A new row begins to prefill."""

    def prefill(self, rows: Sequence[Row], width: int) -> None:
        """The prefilling rows each read up to `width` more tokens."""

    def promote(self, row: int) -> None:
        """A prefilled row begins to decode."""

    def drop_prefilling(self, row: int) -> None:
        """A prefilling row leaves."""

    def drop_running(self, row: int) -> None:
        """A decoding row leaves."""

    def reset_prefill(self) -> None:
        """All prefilling rows are gone."""

    def reset_decode(self) -> None:
        """All decoding rows are gone."""

    def propose(self, rows: Sequence[Row], lengths: Sequence[int], limits: Sequence[int]) -> list[Draft]:
        """Up to `limits[i]` tokens to follow the i-th decoding row's last one.

        `lengths` are the tokens that the target has committed of each row: what any
        cache of the drafter's own holds past them was rejected.
        """
        return [()] * len(rows)
