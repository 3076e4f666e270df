"""Top-k, top-p and min-p: the least logit that each row keeps."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from parallm_openai.engine.request import SamplingParams
from parallm_openai.engine.sampling.candidates import FORBIDDEN, Candidates


@mx.compile
def _exponentials(logits: mx.array, temperatures: mx.array, peaks: mx.array) -> mx.array:
    return mx.exp(logits / temperatures - peaks)


def exponential_sum(logits: mx.array, temperatures: mx.array, peaks: mx.array) -> mx.array:
    """The sum of exp(logit / temperature - peak) of each row, `[rows, 1]`.

    Compiled, because MLX's own `exp` is slow on x86.
    """
    return _exponentials(logits, temperatures, peaks).sum(axis=-1, keepdims=True)


def truncates(params: SamplingParams, vocab_size: int) -> bool:
    return params.top_p < 1 or params.min_p > 0 or 0 < params.top_k < vocab_size


def kept_floor(
    candidates: Candidates, logits: mx.array, temperatures: mx.array, params: Sequence[SamplingParams]
) -> tuple[mx.array, mx.array]:
    """The least tempered logit that each row keeps, `[rows, 1]`, and whether the candidates tell it for sure, `[rows]`.

    A row keeps the top-k, then top-p of what is left, then min-p; ties with the last one kept are kept too.
    `candidates` are the largest of the `logits` `[rows, vocab]`, already divided by the temperature; `logits` are not.
    """
    vocab, count = logits.shape[-1], candidates.values.shape[-1]
    values = candidates.values
    peaks = values[:, :1]
    top_k = mx.array([[p.top_k if 0 < p.top_k < vocab else vocab] for p in params])
    # A top-p of 1 keeps everything, whatever rounding makes of the sum.
    top_p = mx.array([[p.top_p if p.top_p < 1 else float("inf")] for p in params])
    ranked = mx.where(mx.arange(count)[None] < top_k, values, FORBIDDEN)
    weights = mx.exp(ranked - peaks)
    before = mx.cumsum(weights, axis=-1) - weights
    total = _totals(weights, logits, temperatures, peaks, params)
    # The first token always stays, so that a top-p of 0 is the single most likely one.
    kept = ((before < top_p * total) & (ranked > FORBIDDEN)).sum(axis=-1, keepdims=True)
    floor = mx.take_along_axis(ranked, mx.maximum(kept, 1) - 1, axis=-1)
    # p >= min_p * max(p), in logarithms.
    shares = np.log(np.maximum([[p.min_p] for p in params], np.finfo(np.float32).tiny))
    min_p = mx.array([[p.min_p] for p in params])
    floor = mx.maximum(floor, mx.where(min_p > 0, peaks + mx.array(shares.astype(np.float32)), FORBIDDEN))
    # What is no candidate is at most the last of them.
    sure = mx.full((len(params),), True) if count >= vocab else (values[:, -1:] < floor)[:, 0]
    return floor, sure


def _totals(
    weights: mx.array, logits: mx.array, temperatures: mx.array, peaks: mx.array, params: Sequence[SamplingParams]
) -> mx.array:
    """What the weights of all tokens that top-k leaves add up to, `[rows, 1]`."""
    vocab, count = logits.shape[-1], weights.shape[-1]
    total = weights.sum(axis=-1, keepdims=True)
    wide = [row for row, p in enumerate(params) if p.top_p < 1 and not 0 < p.top_k <= count]
    if count < vocab and len(wide) == len(params):
        return exponential_sum(logits, temperatures, peaks)
    if count < vocab and wide:
        where = mx.array(wide)
        total[where] = exponential_sum(logits[where], temperatures[where], peaks[where])
    return total
