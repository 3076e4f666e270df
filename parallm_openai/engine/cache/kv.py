"""The keys and values of a batch: rows of different lengths in one buffer a layer.

Every forward writes at each row's own length, over what earlier ones have written there.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np


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
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What this forward attends to; layers that share another one's keys and values ask for them again."""
        if self.keys is None or self.values is None:
            raise RuntimeError("keys and values were read before any were written")
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
