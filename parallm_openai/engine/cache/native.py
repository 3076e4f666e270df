"""mlx-lm's own caches behind `BatchCache`: for families whose state cannot be rolled back.

Recurrent and hybrid models advance their state with every token they read, so their batch decodes one token a row
and step, and never speculates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from parallm_openai.engine.cache.protocol import BatchCache


class NativePrefill(BatchCache):
    """Rows that read their prompts, each in a cache of its own: recurrent state takes no padding."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rows: list[list[Any]] = []

    def append_row(self) -> None:
        self.rows.append(make_prompt_cache(self.model))

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None:
        raise TypeError("rows leave a NativePrefill, they do not enter it")

    def remove_row(self, slot: int, last_length: int) -> None:
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    def copy_row(self, slot: int, length: int) -> None:
        return None

    def reserve(self, rows: int) -> None: ...

    def forward(self, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> mx.array:
        read = [self.model(mx.array([ids]), cache=row) if ids else None for ids, row in zip(tokens, self.rows)]  # noqa: B905
        width = max(map(len, tokens))
        first = next(logits for logits in read if logits is not None)
        empty = mx.zeros((1, width, first.shape[-1]), dtype=first.dtype)
        return mx.concatenate([empty if x is None else _padded(x, width) for x in read])

    def evaluate(self) -> None:
        mx.eval([layer.state for row in self.rows for layer in row])


def _padded(logits: mx.array, width: int) -> mx.array:
    return mx.pad(logits, [(0, 0), (0, width - logits.shape[1]), (0, 0)])


class NativeCache(BatchCache):
    """Rows that decode together in mlx-lm's batch caches."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rows = 0
        self.layers: list[Any] = []

    def append_row(self) -> None:
        self._join(make_prompt_cache(self.model))

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None:
        if not isinstance(other, NativePrefill):
            raise TypeError(f"a NativeCache takes rows from a NativePrefill, not from a {type(other).__name__}")
        self._join(other.rows[slot])

    def _join(self, row: list[Any]) -> None:
        merged = [layer.merge([layer]) for layer in row]
        if self.rows:
            for mine, theirs in zip(self.layers, merged, strict=True):
                mine.extend(theirs)
        else:
            self.layers = merged
        self.rows += 1
        self.evaluate()

    def remove_row(self, slot: int, last_length: int) -> None:
        self.rows -= 1
        # The last row moves into the free slot.
        order = [self.rows if place == slot else place for place in range(self.rows)]
        if order:
            for layer in self.layers:
                layer.filter(mx.array(order))
        else:
            self.layers = []

    def copy_row(self, slot: int, length: int) -> None:
        return None

    def reserve(self, rows: int) -> None: ...

    def forward(self, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> mx.array:
        if any(len(ids) != 1 for ids in tokens):
            raise ValueError("this family's state cannot be rolled back: it reads one token a row and step")
        return self.model(mx.array([list(ids) for ids in tokens]), cache=self.layers)

    def evaluate(self) -> None:
        mx.eval([layer.state for layer in self.layers])
