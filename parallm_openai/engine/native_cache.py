"""mlx-lm's own caches behind `BatchCache`: for families whose state cannot be un-written.

Recurrent and hybrid models advance their state with every token they read, so their
batch decodes one token a row and step, and never speculates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from parallm_openai.engine.kv_cache import BatchCache


class NativePrefill:
    """Rows still reading their prompt, each with a cache of its own: recurrent state takes no padding."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.lengths: list[int] = []
        self.rows: list[list[Any]] = []

    def append(self) -> None:
        self.lengths.append(0)
        self.rows.append(make_prompt_cache(self.model))

    def reserve(self, rows: int) -> None: ...

    def take(self, other: BatchCache, row: int) -> None:
        raise TypeError("rows leave a NativePrefill, they do not enter it")

    def remove(self, row: int) -> None:
        self.lengths[row], self.rows[row] = self.lengths[-1], self.rows[-1]
        self.lengths.pop()
        self.rows.pop()

    def forward(self, tokens: Sequence[Sequence[int]]) -> mx.array:
        logits = [
            self.model(mx.array([ids]), cache=cache) if ids else None
            for ids, cache in zip(tokens, self.rows, strict=True)
        ]
        width = max(map(len, tokens))
        known = [x for x in logits if x is not None]
        empty = mx.zeros((1, width, known[0].shape[-1]), dtype=known[0].dtype)
        return mx.concatenate(
            [empty if x is None else mx.pad(x, [(0, 0), (0, width - x.shape[1]), (0, 0)]) for x in logits]
        )

    def commit(self, counts: Sequence[int]) -> None:
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def evaluate(self) -> None:
        mx.eval([layer.state for row in self.rows for layer in row])


class NativeCache:
    """Rows that decode together in mlx-lm's batch caches."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.lengths: list[int] = []
        self.layers: list[Any] = []

    def append(self) -> None:
        self._join(make_prompt_cache(self.model), 0)

    def reserve(self, rows: int) -> None: ...

    def take(self, other: BatchCache, row: int) -> None:
        assert isinstance(other, NativePrefill)
        self._join(other.rows[row], other.lengths[row])

    def _join(self, row: list[Any], length: int) -> None:
        merged = [layer.merge([layer]) for layer in row]
        if self.lengths:
            for mine, theirs in zip(self.layers, merged, strict=True):
                mine.extend(theirs)
        else:
            self.layers = merged
        self.lengths.append(length)
        self.evaluate()

    def remove(self, row: int) -> None:
        last = len(self.lengths) - 1
        keep = list(range(last))
        if row != last:
            keep[row] = last
        self.lengths = [self.lengths[i] for i in keep]
        if keep:
            for layer in self.layers:
                layer.filter(mx.array(keep))
        else:
            self.layers = []

    def forward(self, tokens: Sequence[Sequence[int]]) -> mx.array:
        if any(len(ids) != 1 for ids in tokens):
            raise ValueError("this family's state cannot be un-written: one token a row and step")
        return self.model(mx.array([list(ids) for ids in tokens]), cache=self.layers)

    def commit(self, counts: Sequence[int]) -> None:
        if any(count != 1 for count in counts):
            raise ValueError("this family's state cannot be un-written: every token read is kept")
        self.lengths = [length + 1 for length in self.lengths]

    def evaluate(self) -> None:
        mx.eval([layer.state for layer in self.layers])
