"""Who waits, who prefills and who decodes. No arrays here: policy is tested without a model."""

from __future__ import annotations

from collections import deque

from parallm_openai.config import EngineConfig
from parallm_openai.engine.row import Row

# Tokens that each row may grow by before admission would have been wrong.
HEADROOM = 64


class Scheduler:
    """Admits requests first come, first served, and shares each step's prefill budget equally.

    The lists' order is the row order of the prefill and the decode cache; a row that
    leaves is replaced by the last one, as in the caches.
    """

    def __init__(self) -> None:
        self.waiting: deque[Row] = deque()
        self.prefilling: list[Row] = []
        self.running: list[Row] = []

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.prefilling or self.running)

    @property
    def active(self) -> int:
        return len(self.prefilling) + len(self.running)

    def admit(self, config: EngineConfig) -> list[Row]:
        """Move waiting rows that fit into prefill, in order, and return them."""
        admitted: list[Row] = []
        longest = self._longest()
        while self.waiting and self._fits(self.waiting[0], longest, config):
            row = self.waiting.popleft()
            longest = max(longest, len(row.tokens))
            self.prefilling.append(row)
            admitted.append(row)
        return admitted

    def _fits(self, row: Row, longest: int, config: EngineConfig) -> bool:
        # The cache is a rectangle: every row costs as much as the longest. A lone request always fits.
        rows = self.active + 1
        area = rows * (max(longest, len(row.tokens)) + HEADROOM)
        return rows <= config.max_batch_size and (rows == 1 or area <= config.max_batch_tokens)

    def _longest(self) -> int:
        return max((len(row.tokens) for row in self.prefilling + self.running), default=0)

    def overflowing(self, config: EngineConfig) -> bool:
        """Whether the rows have outgrown the token budget, so that one must go back to the queue."""
        return self.active > 1 and self.active * self._longest() > config.max_batch_tokens

    def requeue(self, row: int) -> Row:
        """A decoding row goes back to the head of the queue, to be prefilled again with what it has.

        Nothing is lost: its next token depends on its tokens and its seed alone.
        """
        moved = take(self.running, row)
        self.waiting.appendleft(moved)
        return moved

    def prefill_width(self, config: EngineConfig, remaining: list[int]) -> int:
        """Prompt tokens that each prefilling row may compute in this step.

        An equal share of `prefill_chunk`: a short prompt is through in a step or two however
        long its neighbours are, and decoding rows never wait for more than one chunk.
        """
        share = max(1, config.prefill_chunk // max(1, len(remaining)))
        return min(share, max(remaining, default=0))

    def promote(self, row: int) -> Row:
        """A prefilled row becomes the last decoding one."""
        moved = take(self.prefilling, row)
        self.running.append(moved)
        return moved

    def unqueue(self, request_id: int) -> Row | None:
        """Take a request that still waits out of the queue."""
        for row in self.waiting:
            if row.id == request_id:
                self.waiting.remove(row)
                return row
        return None


def take(rows: list[Row], index: int) -> Row:
    """Remove a row; the last one takes its place."""
    row = rows[index]
    rows[index] = rows[-1]
    rows.pop()
    return row
