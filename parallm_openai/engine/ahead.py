"""Plain decoding one step ahead of the host.

A step without drafts needs from the one before only a token for each row, which the device has before the host knows
it. So the next forward is on its way while the host still reads, reports and plans. It is discarded if it turns out to
be wrong: nothing of it counts until it is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from parallm_openai.engine import sampling
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.row import Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.verification import Verification


@dataclass(frozen=True, slots=True)
class Ahead:
    """The next token of each of these rows, which the device is computing."""

    rows: tuple[Row, ...]
    draw: sampling.Draw

    def tokens_of(self, rows: Sequence[Row]) -> mx.array:
        """The tokens of some of the rows, `[len(rows)]`, not waited for."""
        if tuple(rows) == self.rows:
            return self.draw.tokens
        places = {row: place for place, row in enumerate(self.rows)}
        return self.draw.tokens[mx.array([places[row] for row in rows])]


def advance(target: ModelRunner, batch: Batch, go_on: bool) -> list[Verification]:
    """The rows' next tokens; with `go_on`, the ones after those have been sent off before. Commits nothing."""
    current = batch.ahead or _sent_off(target, batch, _pending(batch), 0)
    # A row that has joined since is not among them: it begins with the others in the next step.
    go_on = go_on and set(batch.rows) <= set(current.rows)
    batch.ahead = _sent_off(target, batch, current.tokens_of(batch.rows)[:, None], 1) if go_on else None
    return _arrived(batch, current)


def finish(batch: Batch) -> list[Verification]:
    """The tokens that have been sent off already; commits nothing."""
    current, batch.ahead = batch.ahead, None
    return _arrived(batch, current) if current is not None else []


def _pending(batch: Batch) -> mx.array:
    return mx.array([row.uncomputed_tokens for row in batch.rows], dtype=mx.int32)


def _sent_off(target: ModelRunner, batch: Batch, ids: mx.array, in_flight: int) -> Ahead:
    """Have the device read `ids` `[rows, 1]` after so many tokens in flight, and draw the next ones."""
    ones = [1] * len(batch.rows)
    logits = target.forward(batch, Inputs(ids, ones, ones), in_flight)
    draw = sampling.Draw.of(logits, [row.position(in_flight) for row in batch.rows])
    mx.async_eval(draw.tokens, draw.sure, draw.number)
    return Ahead(tuple(batch.rows), draw)


def _arrived(batch: Batch, current: Ahead) -> list[Verification]:
    tokens = current.draw.ids()
    if tokens != sampling.as_ids(current.draw.tokens):
        # What has been sent off since went on from wrong tokens.
        batch.ahead = None
    return [
        Verification(row, (), [token]) for row, token in zip(current.rows, tokens, strict=True) if row.batch is batch
    ]
