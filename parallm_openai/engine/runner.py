"""One model and the caches of the rows that it serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from parallm_openai.engine.kv_cache import BatchCache, RaggedCache
from parallm_openai.engine.native_cache import NativeCache, NativePrefill
from parallm_openai.engine.row import Row


class ModelRunner:
    """Runs a model over the prefilling rows and over the decoding rows.

    Rows prefill in a cache of their own, so that a long prompt neither widens nor
    blocks the decoding batch; a finished row is copied over.
    """

    def __init__(self, model: nn.Module, ragged: bool, mask_axes: int = 4) -> None:
        self.model = model
        self.ragged = ragged
        self.mask_axes = mask_axes
        self.reset_prefill()
        self.reset_decode()

    def reset_prefill(self) -> None:
        self.prefilling: BatchCache = self._ragged_cache() if self.ragged else NativePrefill(self.model)

    def reset_decode(self) -> None:
        self.decoding: BatchCache = self._ragged_cache() if self.ragged else NativeCache(self.model)

    def _ragged_cache(self) -> RaggedCache:
        return RaggedCache(self.model, self.mask_axes)

    def copy(self, row: int, length: int) -> RaggedCache | None:
        """A cache with the first `length` tokens of a decoding row alone; None where state cannot be cut."""
        return self.decoding.copy(row, length) if isinstance(self.decoding, RaggedCache) else None

    def admit(self, kept: RaggedCache | None, length: int) -> None:
        """A new row prefills after the first `length` tokens of a kept one, if there is one."""
        if kept is None:
            self.prefilling.append()
        else:
            assert isinstance(self.prefilling, RaggedCache)
            self.prefilling.take(kept, 0, length)

    def unread(self, rows: Sequence[Row]) -> list[int]:
        """How many tokens each prefilling row has still to read; its last is left to the first decode step."""
        return [len(row.tokens) - 1 - done for row, done in zip(rows, self.prefilling.lengths, strict=True)]

    def prefill(self, rows: Sequence[Row], width: int, known: Callable[[Sequence[int]], list[int]] = list) -> mx.array:
        """Read up to `width` more tokens of `rows`, the first of those that prefill, as `known` puts them.

        Returns their logits `[rows, width, vocab]`, not computed unless somebody evaluates them.
        """
        chunks = [
            known(row.tokens[done : min(done + width, len(row.tokens) - 1)])
            for row, done in zip(rows, self.prefilling.lengths[: len(rows)], strict=True)
        ]
        logits = self.prefilling.forward(chunks)
        self.prefilling.evaluate()
        self.prefilling.commit([len(chunk) for chunk in chunks])
        return logits

    def decode(self, tokens: Sequence[Sequence[int]]) -> mx.array:
        """Logits `[rows, longest, vocab]` of the decoding rows over their next tokens; commits nothing."""
        return self.decoding.forward(tokens)
