"""The batch's KV cache: ragged rows, written at each row's own length, committed by the host.

`BatchCache` is what the step sees. `RaggedCache` keeps plain keys and values and can
un-write: a forward of several tokens becomes real only by `commit`, so a rejected draft
costs nothing (the next write covers it). Families with recurrent or other state use
`native_cache.NativeCache` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

CAPACITY_STEP = 256
# Buffers of more tokens than this, over all slots, are freed as soon as no row is left; smaller ones wait for the next.
KEPT_TOKENS = 4096


class BatchCache(Protocol):
    """The cached state of a batch: row i of every forward is the i-th sequence.

    Removing a row moves the last one into its place; the owner of the sequences does the same.
    """

    lengths: list[int]

    def append(self) -> None:
        """Add an empty row at the end."""

    def reserve(self, rows: int) -> None:
        """Make room for so many rows at once."""

    def take(self, other: BatchCache, row: int) -> None:
        """Add a copy of another cache's row at the end."""

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""

    def forward(self, tokens: Sequence[Sequence[int]]) -> mx.array:
        """Run the model over `tokens` (one sequence a row) after what each row has committed.

        Returns logits `[rows, longest, vocab]`, lazily; positions past a row's own tokens
        hold nothing of use. Nothing is committed. A `RaggedCache` also reads for its first rows alone.
        """

    def commit(self, counts: Sequence[int]) -> None:
        """Make the first `counts[row]` of the tokens last forwarded part of each row."""

    def evaluate(self) -> None:
        """Compute the cached state of the last forward without its logits."""


class Layout:
    """Where this forward's tokens go; shared by all layers, worked out once a forward."""

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
        """The causal mask of this forward, `[rows, 1, width, end]` where it is an array.

        Rows of one length need none for a single token, and the kernels' own "causal" for more.
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
            # Zeros, since attention on the CPU lets a NaN through a mask.
            buffer = mx.zeros((layout.slots, new.shape[1], layout.capacity, new.shape[3]), dtype=new.dtype)
        if layout.rows == 1:
            start = int(layout.starts[0])
            buffer[:1, :, start : layout.end] = new
        else:
            buffer[layout.row_index, :, layout.positions] = new.transpose(0, 2, 1, 3)
        return buffer

    def resize(self, slots: int, capacity: int, used: int) -> None:
        """Move to buffers of the given size, keeping the first `used` positions."""
        if self.keys is not None and self.values is not None:
            self.keys = _resized(self.keys, slots, capacity, used)
            self.values = _resized(self.values, slots, capacity, used)
            mx.eval(self.keys, self.values)


def _resized(buffer: mx.array, slots: int, capacity: int, used: int) -> mx.array:
    rows = min(slots, buffer.shape[0])
    bigger = mx.zeros((slots, buffer.shape[1], capacity, buffer.shape[3]), dtype=buffer.dtype)
    bigger[:rows, :, :used] = buffer[:rows, :, :used]
    return bigger


class RaggedCache:
    """A `BatchCache` of plain keys and values, full length in every layer.

    `mask_axes` is 4 for masks `[rows, 1, width, end]`, as attention kernels take them, or 5 for models
    that do their own grouped-query attention and so need `[rows, 1, 1, width, end]`.
    """

    def __init__(self, model: nn.Module, mask_axes: int = 4) -> None:
        self.model = model
        self.lengths: list[int] = []
        self.layout = Layout(mask_axes)
        self.layers = [RaggedLayer(self.layout) for _ in make_prompt_cache(model)]

    def append(self) -> None:
        self._require(len(self.lengths) + 1, 0)
        self.lengths.append(0)

    def reserve(self, rows: int) -> None:
        self._require(rows, 0)

    def copy(self, row: int, length: int) -> RaggedCache:
        """A cache with the first `length` tokens of a row alone, and hardly room for more."""
        alone = RaggedCache(self.model, self.layout.mask_axes)
        # A write that filled the buffer would not be copied: MLX would keep a view of this cache's.
        alone.layout.slots, alone.layout.capacity = 1, length + 1
        alone.take(self, row, length)
        return alone

    def take(self, other: BatchCache, row: int, at_most: int | None = None) -> None:
        """Add a copy of another cache's row at the end, or of its first `at_most` tokens."""
        assert isinstance(other, RaggedCache)
        length, to = other.lengths[row], len(self.lengths)
        if at_most is not None:
            length = min(length, at_most)
        self._require(to + 1, length)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if length and theirs.keys is not None and theirs.values is not None:
                mine.keys = self._adopt(mine.keys, theirs.keys, row, to, length)
                mine.values = self._adopt(mine.values, theirs.values, row, to, length)
        self.lengths.append(length)
        self.evaluate()

    def _adopt(self, mine: mx.array | None, theirs: mx.array, row: int, to: int, length: int) -> mx.array:
        if mine is None:
            shape = (self.layout.slots, theirs.shape[1], self.layout.capacity, theirs.shape[3])
            mine = mx.zeros(shape, dtype=theirs.dtype)
        mine[to : to + 1, :, :length] = theirs[row : row + 1, :, :length]
        return mine

    def remove(self, row: int) -> None:
        last = len(self.lengths) - 1
        if row != last:
            self._move(last, row)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths and self.layout.slots * self.layout.capacity > KEPT_TOKENS:
            self._release()

    def _move(self, source: int, target: int) -> None:
        length = self.lengths[source]
        for layer in self.layers:
            if layer.keys is None or layer.values is None:
                continue
            # Copied out and evaluated first: a pending view of the buffer would turn the write
            # into a copy of the whole buffer.
            row = [mx.contiguous(b[source : source + 1, :, :length]) for b in (layer.keys, layer.values)]
            mx.eval(row)
            layer.keys[target : target + 1, :, :length] = row[0]
            layer.values[target : target + 1, :, :length] = row[1]
        self.evaluate()

    def _release(self) -> None:
        for layer in self.layers:
            layer.keys = layer.values = None
        self.layout.slots = self.layout.capacity = 0

    def _require(self, rows: int, tokens: int) -> None:
        """Make room for `rows` rows of `tokens` tokens; grows in steps, so that copies stay rare."""
        slots, capacity = self.layout.slots, self.layout.capacity
        if rows > slots:
            slots = 1 << (rows - 1).bit_length()
        if tokens > capacity:
            capacity = -(-tokens // CAPACITY_STEP) * CAPACITY_STEP
        if (slots, capacity) != (self.layout.slots, self.layout.capacity):
            used = max(self.lengths, default=0)
            self.layout.slots, self.layout.capacity = slots, capacity
            for layer in self.layers:
                layer.resize(slots, capacity, used)

    def forward(self, tokens: Sequence[Sequence[int]]) -> mx.array:
        width = max(map(len, tokens))
        starts = self.lengths[: len(tokens)]
        self._require(len(tokens), max(starts) + width)
        self.layout.place(starts, width)
        padded = np.zeros((len(tokens), width), dtype=np.int32)
        for row, ids in enumerate(tokens):
            padded[row, : len(ids)] = ids
        return self.model(mx.array(padded), cache=self.layers)

    def commit(self, counts: Sequence[int]) -> None:
        # A forward may have been for the first rows alone, and then so are the counts.
        first = self.lengths[: self.layout.rows]
        self.lengths[: self.layout.rows] = [length + count for length, count in zip(first, counts, strict=True)]

    def trim(self, lengths: Sequence[int]) -> None:
        """Forget what each row holds past `lengths`."""
        self.lengths = [min(mine, limit) for mine, limit in zip(self.lengths, lengths, strict=True)]

    def evaluate(self) -> None:
        mx.eval([layer.state for layer in self.layers])
