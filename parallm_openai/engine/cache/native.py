"""mlx-lm's own caches behind `BatchCache`: for the families that a `RaggedCache` gets wrong.

They cannot be rolled back, so their batch decodes one token a row and step, and never speculates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.models.language_model import LanguageModel


class _Whole(BatchCache):
    """A cache whose rows nobody else can begin with."""

    def copy_row(self, slot: int, length: int) -> None:
        return None

    def keep(self, slot: int, length: int) -> None: ...

    def beginning(self, slot: int, length: int) -> int:
        return 0

    @property
    def state_tokens(self) -> int:
        return 0

    def reserve(self, rows: int) -> None: ...


class NativePrefill(_Whole):
    """Rows that read their prompts, each in a cache of its own: a recurrent state takes no padding."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.rows: list[list[Any]] = []

    def append_row(self) -> None:
        self.rows.append(self.model.make_cache())

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None:
        raise TypeError("rows leave a NativePrefill, they do not enter it")

    def remove_row(self, slot: int, last_length: int) -> None:
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    def forward(self, inputs: Inputs, lengths: Sequence[int], certain: Sequence[int] | None = None) -> mx.array:
        parts = [(inputs.row(slot), self.rows[slot]) for slot, count in enumerate(inputs.counts) if count]
        return mx.concatenate([self.model(own.ids, cache, own.positions()) for own, cache in parts])

    def evaluate(self) -> None:
        mx.eval([layer.state for row in self.rows for layer in row])


class NativeCache(_Whole):
    """Rows that decode together in mlx-lm's batch caches."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.rows = 0
        self.layers: list[Any] = []

    def append_row(self) -> None:
        self._join(self.model.make_cache())

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

    def forward(self, inputs: Inputs, lengths: Sequence[int], certain: Sequence[int] | None = None) -> mx.array:
        if any(count != 1 for count in inputs.counts):
            raise ValueError("this family's state cannot be rolled back: it reads one token a row and step")
        return self.model(inputs.ids, self.layers, inputs.positions())

    def evaluate(self) -> None:
        mx.eval([layer.state for layer in self.layers])
