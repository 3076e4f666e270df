"""Drafts that are not expected to pay, made to find out whether they have become worth while.

Acceptance is only known of what is drafted. So a small share of the decoding time goes into drafts for all rows, and
another into reading prompts with the draft model, for a row's guesses are worth little if it has not read the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TypeVar

from parallm_openai.engine.speculation.draft_length.acceptance_rate import DraftedRow
from parallm_openai.engine.speculation.draft_length.tuning import Tuning

R = TypeVar("R", bound=DraftedRow)
NONE: frozenset[int] = frozenset()


class Exploration:
    """Two budgets in seconds, both shares of the decoding time: one for drafts, one for prompts."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        # Steps that drafted after steps without drafts.
        self.drafts = 0
        # Decoding since the last draft, and what the last draft after steps without drafts took beyond a plain step.
        # Such a draft takes longer than others, because the draft model first reads what these steps brought.
        self._since_draft = 0.0
        self._draft_seconds = 0.0
        # Decoding since the last exploration of prompts began, and what that exploration has taken.
        self._since_prefill = 0.0
        self._prefill_seconds = 0.0
        # Its rows, and those of them that have not been drafted for yet.
        self._explored = NONE
        self._undrafted = NONE

    def prefill(self, rows: Sequence[R]) -> Sequence[R]:
        """The first few of these rows, for the draft model to read their prompts; none, if the budget is spent.

        Prompts that were begun are read to their end.
        """
        few = rows[: self.tuning.prefill_rows]
        ids = frozenset(row.id for row in few)
        if ids & self._explored:
            return few
        if self._prefill_seconds > self.tuning.prefill_share * self._since_prefill:
            return ()
        self._prefill_seconds = self._since_prefill = 0.0
        self._explored = self._undrafted = ids
        return few

    def record_prefill(self, seconds: float) -> None:
        """The draft model has read these rows' prompts for so long."""
        self._prefill_seconds += seconds

    def rows_to_draft(self, rows: Sequence[DraftedRow], extra_seconds: float) -> Set[int]:
        """Ids of the rows to draft for although that is not expected to pay.

        These are rows whose prompts were explored, once; otherwise all rows, if the budget allows the seconds that
        their draft takes beyond a plain step; otherwise none.
        """
        ids = frozenset(row.id for row in rows)
        if undrafted := ids & self._undrafted:
            return undrafted
        extra = max(extra_seconds, self._draft_seconds)
        return ids if extra < self.tuning.draft_share * self._since_draft else NONE

    def learn(self, rows: Sequence[DraftedRow], drafted: bool, seconds: float, plain_seconds: float) -> None:
        """A step has taken so long; it would have taken `plain_seconds` without drafts."""
        self._since_prefill += seconds
        undrafted = self._undrafted & {row.id for row in rows}
        self._undrafted -= undrafted
        if not drafted:
            self._since_draft += seconds
            return
        extra = max(0.0, seconds - plain_seconds)
        if undrafted:
            self._prefill_seconds += extra
        elif self._since_draft:
            self._draft_seconds = extra
        self.drafts += bool(undrafted or self._since_draft)
        self._since_draft = 0.0
