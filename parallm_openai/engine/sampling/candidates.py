"""The largest logits of a vocabulary, without sorting it.

The n largest values lie in the n blocks with the largest maxima, so that one pass over the vocabulary and a sort of n
blocks find them, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from parallm_openai.engine.sampling.noise import BLOCK

FORBIDDEN = -float("inf")


@dataclass(frozen=True, slots=True)
class Candidates:
    """The largest logits of each row, largest first, and their token ids; both `[rows, count]`."""

    values: mx.array
    tokens: mx.array


def in_blocks(logits: mx.array) -> mx.array:
    """`[rows, vocab]` logits as `[rows, blocks, BLOCK]`; the last block is filled up with -inf."""
    rows, vocab = logits.shape
    if missing := -vocab % BLOCK:
        logits = mx.pad(logits, [(0, 0), (0, missing)], constant_values=FORBIDDEN)
    return logits.reshape(rows, -1, BLOCK)


def top_blocks(scores: mx.array, count: int) -> mx.array:
    """The numbers of the `count` blocks with the largest scores, of `[rows, blocks]`, in no order."""
    if count >= scores.shape[-1]:
        return mx.broadcast_to(mx.arange(scores.shape[-1])[None], scores.shape)
    return mx.argpartition(-scores, kth=count - 1, axis=-1)[:, :count]


def gathered(blocks: mx.array, chosen: mx.array) -> mx.array:
    """The chosen blocks of `[rows, blocks, BLOCK]`: `[rows, chosen, BLOCK]`."""
    return mx.take_along_axis(blocks, chosen[:, :, None], axis=1)


def tokens_in(chosen: mx.array) -> mx.array:
    """The token ids of all tokens in the chosen blocks: `[rows, chosen * BLOCK]`."""
    return (chosen[:, :, None] * BLOCK + mx.arange(BLOCK)).reshape(chosen.shape[0], -1)


def largest(logits: mx.array, count: int) -> Candidates:
    """The `count` largest of `[rows, vocab]` logits, or all of them."""
    blocks = in_blocks(logits)
    chosen = top_blocks(blocks.max(axis=-1), count)
    values = gathered(blocks, chosen).reshape(logits.shape[0], -1)
    count = min(count, logits.shape[-1])
    order = mx.argpartition(-values, kth=count - 1, axis=-1)[:, :count] if count < values.shape[-1] else None
    if order is None:
        order = mx.argsort(-values, axis=-1)[:, :count]
    else:
        ranked = mx.argsort(-mx.take_along_axis(values, order, axis=-1), axis=-1)
        order = mx.take_along_axis(order, ranked, axis=-1)
    tokens = mx.take_along_axis(tokens_in(chosen), order, axis=-1)
    return Candidates(mx.take_along_axis(values, order, axis=-1), tokens)
