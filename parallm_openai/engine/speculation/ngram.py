"""Prompt lookup: draft the tokens that followed the last few when they stood in this text before.

Saxena, "Prompt Lookup Decoding" (2023). It needs no model and no cache, and pays if the answer
repeats its prompt: code edits, extraction, summaries.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.row import Row
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.settings import Acceptance

LONGEST = 3


class NgramIndex:
    """For each n-gram of a growing text, the place after its last occurrence."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._read = 0

    def update(self, tokens: Sequence[int]) -> None:
        """Add what the text has grown by; its very last token has no continuation yet."""
        for end in range(max(self._read, 1), len(tokens)):
            for size in range(1, min(LONGEST, end) + 1):
                self._after[tuple(tokens[end - size : end])] = end
        self._read = len(tokens)

    def lookup(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """Up to `count` tokens that followed the longest known suffix of `tokens`."""
        for size in range(min(LONGEST, len(tokens)), 0, -1):
            start = self._after.get(tuple(tokens[-size:]))
            if start is not None:
                return _continue(tokens, start, count)
        return ()


def _continue(tokens: Sequence[int], start: int, count: int) -> tuple[int, ...]:
    """`count` tokens from `start` on; past the end it continues with its own copy, so that a loop unrolls."""
    period = len(tokens) - start
    return tuple(tokens[start + offset % period] for offset in range(count))


class NgramDrafter(Drafter):
    """Drafts from each row's own prompt and output."""

    name = "ngram"

    def available(self, row: Row, limit: int) -> int:
        return len(_lookup(row, limit))

    def propose(self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance) -> Drafts:
        return Drafts.of([_lookup(row, length) for row, length in zip(batch.rows, lengths, strict=True)])


def _lookup(row: Row, count: int) -> tuple[int, ...]:
    if not count:
        return ()
    if row.ngrams is None:
        row.ngrams = NgramIndex()
    row.ngrams.update(row.tokens)
    return row.ngrams.lookup(row.tokens, count)
