"""One model, run over the rows of a batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mlx.core as mx
import mlx.nn as nn

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.kv import RaggedCache
from parallm_openai.engine.cache.native import NativeCache, NativePrefill
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.row import Row


class ModelRunner:
    """A model and the role that it has for a row: the target that is served, or the draft model.

    Rows prefill in a cache of their own, so that a long prompt neither widens nor blocks the decoding batch; a row
    whose prompt is computed is copied over. `vocab_size` is given if rows may hold ids that the model does not have;
    it reads those as 0.
    """

    def __init__(
        self, model: nn.Module, role: str, *, ragged: bool = True, mask_axes: int = 4, vocab_size: int | None = None
    ) -> None:
        self.model = model
        self.role = role
        self.ragged = ragged
        self.mask_axes = mask_axes
        self.vocab_size = vocab_size

    def prefill_cache(self) -> BatchCache:
        return RaggedCache(self.model, self.mask_axes) if self.ragged else NativePrefill(self.model)

    def decode_cache(self) -> BatchCache:
        return RaggedCache(self.model, self.mask_axes) if self.ragged else NativeCache(self.model)

    def prefill(self, batch: Batch, width: int, reading: Collection[Row] | None = None) -> mx.array:
        """Compute up to `width` more tokens of each row, or of those `reading`, all but its last; commits them.

        Returns logits `[rows, width, vocab]`, not computed unless somebody evaluates them. The rows are the batch's
        first ones, up to the last that reads.
        """
        rows = batch.rows if reading is None else batch.rows[: max(row.slot for row in reading) + 1]
        chunks: list[Sequence[int]] = []
        for row in rows:
            computed = row.computed[self.role].end
            end = min(computed + width, len(row.tokens) - 1)
            chunks.append(row.tokens[computed:end] if reading is None or row in reading else ())
        logits = self.forward(batch, chunks)
        batch.caches[self.role].evaluate()
        for row, chunk in zip(rows, chunks, strict=True):
            row.computed[self.role].length += len(chunk)
        return logits

    def forward(self, batch: Batch, tokens: Sequence[Sequence[int]]) -> mx.array:
        """Logits `[rows, longest, vocab]` of the batch's first rows over `tokens`; commits nothing."""
        lengths = [row.computed[self.role].length for row in batch.rows[: len(tokens)]]
        return batch.caches[self.role].forward([self._known(ids) for ids in tokens], lengths)

    def _known(self, tokens: Sequence[int]) -> Sequence[int]:
        if self.vocab_size is None:
            return tokens
        return [token if token < self.vocab_size else 0 for token in tokens]
