"""Log-probabilities of tokens, and of the most likely ones in their place."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from parallm_openai.engine.request import TokenLogprob
from parallm_openai.engine.sampling.candidates import largest
from parallm_openai.engine.sampling.truncation import exponential_sum


def token_logprobs(logits: mx.array, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """Log-probabilities of `tokens` under `[len(tokens), vocab]` raw logits, with `tops[i]` alternatives.

    A token that is the most likely one has exactly the value of the first alternative.
    """
    logits = logits.astype(mx.float32)
    peaks = logits.max(axis=-1, keepdims=True)
    normaliser = peaks + mx.log(exponential_sum(logits, mx.ones_like(peaks), peaks))
    chosen = mx.take_along_axis(logits, mx.array(list(tokens))[:, None], axis=-1) - normaliser
    scores = np.array(chosen)[:, 0].tolist()
    most = max(tops)
    if most == 0:
        return [TokenLogprob(token, score) for token, score in zip(tokens, scores, strict=True)]
    best = largest(logits, most)
    values, ids = np.array(best.values - normaliser), np.array(best.tokens)
    return [
        TokenLogprob(token, scores[i], _ranked(ids[i].tolist(), values[i].tolist(), tops[i]))
        for i, token in enumerate(tokens)
    ]


def _ranked(ids: list[int], scores: list[float], count: int) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(zip(ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))[:count])
