"""Prompt lookup: what followed the last few tokens when they stood in this text before.

Saxena, "Prompt Lookup Decoding" (2023). No model and no cache; it pays where the answer
repeats its prompt: code edits, extraction, summaries.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallm_openai.config import Acceptance
from parallm_openai.engine.row import Row
from parallm_openai.engine.speculation.drafter import NO_DRAFT, Draft, Drafter

LONGEST = 3


class NgramIndex:
    """Where each n-gram of a growing text was last continued."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._read = 0

    def update(self, tokens: Sequence[int]) -> None:
        """Take in what the text has grown by; its very last token has no continuation yet."""
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
    """`count` tokens from `start` on; past the end it goes on with the copy, so that a loop unrolls."""
    period = len(tokens) - start
    return tuple(tokens[start + offset % period] for offset in range(count))


class NgramDrafter(Drafter):
    """Drafts from each row's own prompt and output."""

    name = "ngram"
    free = True

    def __init__(self) -> None:
        self._indexes: list[NgramIndex] = []

    def promote(self, source: Drafter, row: int) -> None:
        self._indexes.append(NgramIndex())

    def move(self, source: Drafter, row: int) -> None:
        assert isinstance(source, NgramDrafter)
        self._indexes.append(source._indexes[row])

    def drop_running(self, row: int) -> None:
        self._indexes[row] = self._indexes[-1]
        self._indexes.pop()

    def reset_decode(self) -> None:
        self._indexes.clear()

    def propose(
        self,
        rows: Sequence[Row],
        lengths: Sequence[int],
        limits: Sequence[int],
        acceptance: Acceptance = "coupled",
    ) -> list[Draft]:
        drafts: list[Draft] = []
        for row, index, limit in zip(rows, self._indexes, limits, strict=True):
            if limit:
                index.update(row.tokens)
            drafts.append(Draft(index.lookup(row.tokens, limit)) if limit else NO_DRAFT)
        return drafts
