"""What changes a position's logits before anything is drawn: penalties, bias, forbidden tokens, grammars."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from parallm_openai.engine.position import Position
from parallm_openai.engine.sampling.candidates import FORBIDDEN


def adjust(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Apply penalties, `logit_bias`, forbidden tokens and grammars to `[len(positions), vocab]` logits.

    Penalties touch only the tokens concerned, with one gather and one scatter for the batch.
    """
    logits = _penalised(logits, positions)
    logits = _biased(logits, positions)
    return _constrained(logits, positions)


def _penalised(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    rows, ids, divisors, shifts = [], [], [], []
    for row, position in enumerate(positions):
        params = position.params
        if not params.penalised or position.history is None:
            continue
        tokens, counts = position.history.counts(position.drafts)
        rows.append(np.full(len(tokens), row, dtype=np.int32))
        ids.append(tokens)
        divisors.append(np.full(len(tokens), params.repetition_penalty, dtype=np.float32))
        shifts.append(params.frequency_penalty * counts + params.presence_penalty * (counts > 0))
    if not rows:
        return logits
    where = mx.array(np.concatenate(rows)), mx.array(np.concatenate(ids))
    divisor, shift = mx.array(np.concatenate(divisors)), mx.array(np.concatenate(shifts).astype(np.float32))
    values = logits[where]
    logits[where] = mx.where(values > 0, values / divisor, values * divisor) - shift
    return logits


def _biased(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Add the biases; a forbidden token is one with a bias of -inf."""
    rows: list[int] = []
    ids: list[int] = []
    biases: list[float] = []
    for row, position in enumerate(positions):
        bias = {**position.params.logit_bias, **dict.fromkeys(position.forbidden, FORBIDDEN)}
        rows += [row] * len(bias)
        ids += bias.keys()
        biases += bias.values()
    return logits.at[mx.array(rows), mx.array(ids)].add(mx.array(biases)) if rows else logits


def _constrained(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Forbid what a row's grammar does not allow."""
    masks = {row: position.allowed for row, position in enumerate(positions) if position.allowed is not None}
    if not masks:
        return logits
    words = np.stack(list(masks.values())).view(np.uint8)
    allowed = mx.array(np.unpackbits(words, axis=1, count=logits.shape[-1], bitorder="little").view(np.bool_))
    if len(masks) == len(positions):
        return mx.where(allowed, logits, FORBIDDEN)
    where = mx.array(list(masks))
    logits[where] = mx.where(allowed, logits[where], FORBIDDEN)
    return logits
