"""The KV cache of a batch: rows of different lengths in one buffer a layer.

Every forward writes at each row's own length. Nothing is ever undone: the engine commits by counting more of what was
written, and the next forward writes over the rest. Families with recurrent state use `native.NativeCache` instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.models.language_model import LanguageModel

CAPACITY_STEP = 256
# Once its last row has left, a cache frees buffers of more tokens than this, over all slots, and keeps smaller ones.
IDLE_BUFFER_TOKENS = 4096


class Layout:
    """The positions of one forward's tokens in the buffers, worked out once for all layers."""

    def __init__(self, mask_axes: int = 4) -> None:
        self.mask_axes = mask_axes
        self.slots = 0
        self.capacity = 0
        self._masks: dict[tuple[int | None, bool], mx.array | str | None] = {}

    def place(self, lengths: Sequence[int], width: int) -> None:
        """Set the positions of a forward of `[len(lengths), width]` tokens.

        An out-of-range scatter corrupts the heap silently, hence the check.
        """
        starts = np.asarray(lengths, dtype=np.int32)
        self.rows = len(lengths)
        self.width = width
        self.end = int(starts.max()) + width
        if self.end > self.capacity or self.rows > self.slots:
            raise RuntimeError(
                f"a write to {self.rows}x{self.end} does not fit the cache's {self.slots}x{self.capacity}"
            )
        self.level = bool((starts == starts[0]).all())
        self.starts = starts
        self.offset = mx.array(starts)
        self.row_index = mx.arange(self.rows)[:, None]
        self.positions = mx.array(starts[:, None] + np.arange(width, dtype=np.int32))
        self._masks.clear()

    def mask(self, window: int | None, as_array: bool) -> mx.array | str | None:
        """The causal mask of this forward: an array `[rows, 1, width, end]`, "causal", or None.

        Rows of one length need no mask for a single token, and the kernels' own "causal" for more.
        """
        if window is not None and window >= self.end:
            window = None
        key = (window, as_array)
        if key not in self._masks:
            self._masks[key] = self._make_mask(window, as_array)
        return self._masks[key]

    def _make_mask(self, window: int | None, as_array: bool) -> mx.array | str | None:
        if self.level and window is None:
            if self.width == 1:
                return None
            if not as_array:
                return "causal"
        queries = self.starts[:, None, None, None] + np.arange(self.width)[None, None, :, None]
        keys = np.arange(self.end)[None, None, None, :]
        visible = keys <= queries
        if window is not None:
            visible &= keys > queries - window
        return mx.array(np.expand_dims(visible, 2) if self.mask_axes == 5 else visible)


class RaggedLayer:
    """One layer's keys and values `[slots, kv_heads, capacity, head_dim]`, as mlx-lm's attention sees it.

    Sliding-window layers keep their full length too; their window is in the mask.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> mx.array:
        return self.layout.offset

    @property
    def state(self) -> tuple[mx.array, mx.array] | tuple[()]:
        return (self.keys, self.values) if self.keys is not None and self.values is not None else ()

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str | None:
        return self.layout.mask(window_size, return_array)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys = self._write(self.keys, keys)
        self.values = self._write(self.values, values)
        rows, end = self.layout.rows, self.layout.end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def _write(self, buffer: mx.array | None, new: mx.array) -> mx.array:
        layout = self.layout
        if buffer is None:
            buffer = self._zeros(new)
        if layout.rows == 1:
            start = int(layout.starts[0])
            buffer[:1, :, start : layout.end] = new
        else:
            buffer[layout.row_index, :, layout.positions] = new.transpose(0, 2, 1, 3)
        return buffer

    def copy_row(self, other: RaggedLayer, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of another layer's slot into one of this layer's."""
        if other.keys is not None and other.values is not None:
            self.keys = self._copied(self.keys, other.keys, source, target, length)
            self.values = self._copied(self.values, other.values, source, target, length)

    def _copied(self, mine: mx.array | None, theirs: mx.array, source: int, target: int, length: int) -> mx.array:
        if mine is None:
            mine = self._zeros(theirs)
        mine[target : target + 1, :, :length] = theirs[source : source + 1, :, :length]
        return mine

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one of this layer's slots into another."""
        if self.keys is None or self.values is None:
            return
        # Copied out and evaluated first: a pending view of the buffer would turn the write
        # into a copy of the whole buffer.
        row = [mx.contiguous(b[source : source + 1, :, :length]) for b in (self.keys, self.values)]
        mx.eval(row)
        self.keys[target : target + 1, :, :length] = row[0]
        self.values[target : target + 1, :, :length] = row[1]

    def resize(self) -> None:
        """Move to buffers of the layout's size."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self._resized(self.keys), self._resized(self.values)
            mx.eval(self.keys, self.values)

    def _resized(self, buffer: mx.array) -> mx.array:
        slots, _, capacity, _ = buffer.shape
        resized = self._zeros(buffer)
        resized[:slots, :, :capacity] = buffer
        return resized

    def _zeros(self, like: mx.array) -> mx.array:
        # Zeros, since attention on the CPU lets a NaN through a mask.
        shape = (self.layout.slots, like.shape[1], self.layout.capacity, like.shape[3])
        return mx.zeros(shape, dtype=like.dtype)


class RaggedCache(BatchCache):
    """A `BatchCache` of plain keys and values, full length in every layer.

    `mask_axes` is 4 for masks `[rows, 1, width, end]`, as attention kernels take them, or 5 for models
    that do their own grouped-query attention and so need `[rows, 1, 1, width, end]`.
    """

    def __init__(self, model: LanguageModel, mask_axes: int = 4) -> None:
        self.model = model
        self.rows = 0
        self.layout = Layout(mask_axes)
        self.layers = [RaggedLayer(self.layout) for _ in model.make_cache()]

    def append_row(self) -> None:
        self._require(self.rows + 1, 0)
        self.rows += 1

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None:
        if not isinstance(other, RaggedCache):
            raise TypeError(f"a RaggedCache cannot copy a row of a {type(other).__name__}")
        self._require(self.rows + 1, length)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if length:
                mine.copy_row(theirs, slot, self.rows, length)
        self.rows += 1
        self.evaluate()

    def remove_row(self, slot: int, last_length: int) -> None:
        last = self.rows - 1
        if slot != last:
            for layer in self.layers:
                layer.move_row(last, slot, last_length)
            self.evaluate()
        self.rows = last
        if not self.rows and self.layout.slots * self.layout.capacity > IDLE_BUFFER_TOKENS:
            self._release()

    def copy_row(self, slot: int, length: int) -> RaggedCache:
        copied = RaggedCache(self.model, self.layout.mask_axes)
        # A write that filled the buffer would not be copied: MLX would keep a view of this cache's.
        copied.layout.slots, copied.layout.capacity = 1, length + 1
        copied.append_row_from(self, slot, length)
        return copied

    def reserve(self, rows: int) -> None:
        self._require(rows, 0)

    def forward(self, inputs: Inputs, lengths: Sequence[int]) -> mx.array:
        self._require(inputs.rows, max(lengths) + inputs.width)
        self.layout.place(lengths, inputs.width)
        return self.model(inputs.ids, self.layers, inputs.positions())

    def evaluate(self) -> None:
        mx.eval([layer.state for layer in self.layers])

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
