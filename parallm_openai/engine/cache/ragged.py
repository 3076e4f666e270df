"""The cache of a batch: rows of different lengths, whose tokens are computed together.

Every forward goes on at each row's own length. Nothing is ever undone: the engine commits by counting more of what was
computed, and the next forward begins after that. Keys and values are written over (`kv.py`); the states of recurrent
layers are those of the tokens that count (`states.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.kv import Layout, RaggedLayer
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.cache.states import BatchStates
from parallm_openai.models.language_model import LanguageModel
from parallm_openai.models.mixers import leaves, mixers_in

CAPACITY_STEP = 256
# Once its last row has left, a cache frees buffers of more tokens than this, over all slots, and keeps smaller ones.
IDLE_BUFFER_TOKENS = 4096
# The budget of stored prefixes is in tokens. In a model without keys and values, so many bytes of states are one token.
USUAL_TOKEN_BYTES = 16384


@dataclass(frozen=True, slots=True)
class Ragged:
    """How a model wants its `RaggedCache`.

    `mask_axes` is 4 for masks `[rows, 1, width, end]`, as attention kernels take them, or 5 for models
    that do their own grouped-query attention and so need `[rows, 1, 1, width, end]`. `recurrent` says that some layers
    have a state instead of keys and values, `masked` that those layers pass over padding.
    """

    mask_axes: int = 4
    recurrent: bool = False
    masked: bool = False

    def cache(self, model: LanguageModel) -> RaggedCache:
        return RaggedCache(model, self)


class RaggedCache(BatchCache):
    """A `BatchCache` of keys and values, full length in every layer, and of recurrent states."""

    def __init__(self, model: LanguageModel, ragged: Ragged | None = None) -> None:
        self.model = model
        self.ragged = ragged or Ragged()
        self.rows = 0
        self.layout = Layout(self.ragged.mask_axes)
        self.caches = [self._layer(own) for own in model.make_cache()]
        every = list(leaves(self.caches))
        self.layers = [layer for layer in every if isinstance(layer, RaggedLayer)]
        recurrent = [layer for layer in every if isinstance(layer, ArraysCache)]
        self.states = BatchStates(recurrent, self.ragged.masked) if recurrent else None

    def _layer(self, own: Any) -> Any:
        if isinstance(own, CacheList):
            return CacheList(*map(self._layer, own.caches))
        return ArraysCache(len(own.cache)) if isinstance(own, ArraysCache) else RaggedLayer(self.layout)

    def append_row(self) -> None:
        self._require(self.rows + 1, 0)
        self.rows += 1
        if self.states is not None:
            self.states.append_row()

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None:
        if not isinstance(other, RaggedCache):
            raise TypeError(f"a RaggedCache cannot copy a row of a {type(other).__name__}")
        self._require(self.rows + 1, length)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if length:
                mine.copy_row(theirs, slot, self.rows, length)
        if self.states is not None and other.states is not None:
            self.states.append_row_from(other.states, slot, length)
        self.rows += 1
        self.evaluate()

    def remove_row(self, slot: int, last_length: int) -> None:
        last = self.rows - 1
        if slot != last:
            for layer in self.layers:
                layer.move_row(last, slot, last_length)
            self.evaluate()
        self.rows = last
        if self.states is not None:
            self.states.remove_row(slot)
        if not self.rows and self.layout.slots * self.layout.capacity > IDLE_BUFFER_TOKENS:
            self._release()

    def copy_row(self, slot: int, length: int) -> RaggedCache:
        copied = self.ragged.cache(self.model)
        # A write that filled the buffer would not be copied: MLX would keep a view of this cache's.
        copied.layout.slots, copied.layout.capacity = 1, length + 1
        copied.append_row_from(self, slot, length)
        return copied

    def beginning(self, slot: int, length: int) -> int:
        return length if self.states is None else self.states.beginning(slot, length)

    def keep(self, slot: int, length: int) -> None:
        if self.states is not None:
            self.states.keep(slot, length)

    @property
    def token_bytes(self) -> int:
        """What the keys and values of one token take."""
        buffers = [buffer for layer in self.layers for buffer in layer.state]
        return sum(buffer.shape[1] * buffer.shape[3] * buffer.itemsize for buffer in buffers)

    @property
    def state_tokens(self) -> int:
        return 0 if self.states is None else -(-self.states.nbytes // (self.token_bytes or USUAL_TOKEN_BYTES))

    def reserve(self, rows: int) -> None:
        self._require(rows, 0)

    def forward(self, inputs: Inputs, lengths: Sequence[int], certain: Sequence[int] | None = None) -> mx.array:
        self._require(inputs.rows, max(lengths) + inputs.width)
        self.layout.place(lengths, inputs.width)
        if self.states is None:
            return self.model(inputs.ids, self.caches, inputs.positions())
        certain = lengths if certain is None else certain
        forward = self.states.begin(lengths, inputs.counts, certain)
        with mixers_in(forward.recording):
            logits = self.model(inputs.ids, self.caches, inputs.positions())
        self.states.end(forward, inputs.counts, certain)
        return logits

    def evaluate(self) -> None:
        mx.eval([layer.state for layer in self.layers], [] if self.states is None else self.states.arrays())

    def _require(self, rows: int, tokens: int) -> None:
        """Make room for `rows` rows of `tokens` tokens; grows in steps, so that copies stay rare."""
        slots, capacity = self.layout.slots, self.layout.capacity
        if rows > slots:
            slots = 1 << (rows - 1).bit_length()
        if tokens > capacity:
            capacity = -(-tokens // CAPACITY_STEP) * CAPACITY_STEP
        if (slots, capacity) != (self.layout.slots, self.layout.capacity):
            self.layout.slots, self.layout.capacity = slots, capacity
            for layer in self.layers:
                layer.resize()

    def _release(self) -> None:
        for layer in self.layers:
            layer.keys = layer.values = None
        self.layout.slots = self.layout.capacity = 0
