"""Embeddings of token sequences by a decoder: the states of its last layer, pooled."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from parallm_openai.models.embedding import Pooling
from parallm_openai.models.kernels import prefill_tokens


class Embedder:
    """Belongs to the engine's thread, as all work with MLX does."""

    def __init__(self, model: nn.Module, pooling: Pooling, chunk: int | None = None) -> None:
        self._model = model
        self._pooling = pooling
        # How many tokens a forward reads, of all its rows together as of one row that is longer.
        self.chunk = chunk or prefill_tokens()

    def embed(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """`[rows, width]` in float32, of no particular length. Rows stand on the left; none is empty.

        A decoder's states never depend on what comes later, so padding on the right changes none that counts.
        """
        lengths = np.array([len(row) for row in rows])
        tokens = np.zeros((len(rows), lengths.max()), dtype=np.int32)
        for place, row in zip(tokens, rows, strict=True):
            place[: len(row)] = row
        shares = self._shares(lengths)
        # One forward needs no cache.
        cache = make_prompt_cache(self._model) if tokens.shape[1] > self.chunk else None
        pooled = mx.array(0.0)
        for start in range(0, tokens.shape[1], self.chunk):
            part = slice(start, start + self.chunk)
            states = self._model.model(mx.array(tokens[:, part]), cache=cache)
            pooled = pooled + _weighted(states.astype(mx.float32), mx.array(shares[:, part]))
            mx.eval(pooled, *([layer.state for layer in cache] if cache is not None else []))
        return np.array(pooled)

    def _shares(self, lengths: np.ndarray) -> np.ndarray:
        """`[rows, positions]`: how much each position's state counts for its row."""
        positions = np.arange(lengths.max())[None]
        match self._pooling:
            case Pooling.LAST:
                shares = positions == lengths[:, None] - 1
            case Pooling.FIRST:
                shares = np.broadcast_to(positions == 0, (len(lengths), lengths.max()))
            case Pooling.MEAN:
                shares = (positions < lengths[:, None]) / lengths[:, None]
        return shares.astype(np.float32)


def _weighted(states: mx.array, shares: mx.array) -> mx.array:
    # What padding computes may be no number, and must not count even then.
    counted = mx.where(shares[..., None] > 0, states, 0.0)
    return (shares[:, None] @ counted).squeeze(1)
