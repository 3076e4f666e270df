"""Drafting with the model's own head for multi-token prediction (`models/mtp.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.row import DRAFT, TARGET, Row
from parallm_openai.engine.speculation.draft_model import CATCH_UP, RESTART, DraftModel
from parallm_openai.models.language_model import hidden_states
from parallm_openai.models.mtp import fed


class MTPHead(DraftModel):
    """Drafts from the target's hidden states.

    The head's i-th token is the row's i-th hidden state together with its token i + 1. Only those are committed to its
    cache. For the tokens that it drafts it reads its own hidden state in the place of the target's, and does so again
    with the target's once those are known.

    A row whose hidden states are not all there, because its prompt was stored or not read along, leaves those tokens
    out: a draft needs no exact context.
    """

    name = "mtp"
    reads_hidden_states = True

    def __init__(
        self, head: nn.Module, vocab_size: int, ragged: Ragged = Ragged(), *, asynchronous: bool = False
    ) -> None:
        super().__init__(head, vocab_size, vocab_size, ragged, asynchronous=asynchronous)
        # The head's states after its last forward: of each row's last token, `[rows, 1, hidden]`.
        self._last = mx.zeros((0,))

    def _read(self, batch: Batch, chunks: Sequence[Sequence[int]]) -> None:
        with fed(_gathered(batch.rows[: len(chunks)], [len(chunk) for chunk in chunks])):
            super()._read(batch, chunks)

    def _unread(self, row: Row) -> int:
        draft = row.computed[DRAFT]
        self._leave_out(row, row.hidden.start - draft.end)
        return min(row.computed[TARGET].length, len(row.tokens) - 1) - draft.end

    def _catch_up(self, row: Row, length: int) -> int:
        if self._unread(row) > CATCH_UP:
            self._leave_out(row, self._unread(row) - RESTART)
        return self._unread(row)

    def _leave_out(self, row: Row, tokens: int) -> None:
        """Go on after so many tokens more, as if the row had begun later."""
        row.computed[DRAFT].start += max(0, tokens)

    def _next(self, row: Row, count: int) -> list[int]:
        first = row.computed[DRAFT].end + 1
        return row.tokens[first : first + count]

    def _logits(self, batch: Batch, inputs: Inputs, depth: int) -> mx.array:
        if depth:
            with fed(self._last), hidden_states() as seen:
                logits = self.runner.forward(batch, inputs, in_flight=depth - 1)
            self._last = seen[0]
            return logits
        with fed(_gathered(batch.rows, inputs.counts)), hidden_states() as seen:
            logits = self.runner.advance(batch, inputs)
        for row in batch.rows:
            row.hidden.forget(row.computed[DRAFT].end)
        ends = [row * inputs.width + max(count - 1, 0) for row, count in enumerate(inputs.counts)]
        self._last = _flat(seen[0])[mx.array(ends)][:, None]
        return logits


def _gathered(rows: Sequence[Row], counts: Sequence[int]) -> mx.array:
    """The hidden states that go with the next tokens of each row, so many, `[rows, widest, hidden]`."""
    width = max(counts)
    sources: list[mx.array] = []
    firsts: list[int] = []
    places = np.zeros((len(rows), width), dtype=np.int32)
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        for column, (states, place) in enumerate(row.hidden.of(row.computed[DRAFT].end, count)):
            known = next((at for at, own in enumerate(sources) if own is states), None)
            if known is None:
                known = len(sources)
                firsts.append(sum(own.shape[0] * own.shape[1] for own in sources))
                sources.append(states)
            places[number, column] = firsts[known] + place
    every = mx.concatenate([_flat(states) for states in sources]) if len(sources) > 1 else _flat(sources[0])
    return every[mx.array(places)]


def _flat(states: mx.array) -> mx.array:
    return states.reshape(-1, states.shape[-1])
