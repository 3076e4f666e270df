"""The ragged cache under any sequence of joins, leaves, rejected tails and growth."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.kv import Layout
from parallm_openai.engine.cache.ragged import CAPACITY_STEP, IDLE_BUFFER_TOKENS, RaggedCache
from parallm_openai.models.language_model import LanguageModel


def alone(tokens: list[int]) -> np.ndarray:
    return np.array(tiny.model()(mx.array([tokens]))[0])


class Mirror:
    """A cache beside plain lists of what each row holds."""

    def __init__(self) -> None:
        self.cache = RaggedCache(LanguageModel(tiny.model()))
        self.rows: list[list[int]] = []

    def forward(self, chunks: list[list[int]], keep: list[int]) -> None:
        """Read the chunks, check every logit, commit the first `keep` tokens of each."""
        logits = self.cache.forward(Inputs.of(chunks), [len(held) for held in self.rows])
        expected = [alone(held + chunk)[len(held) :] for held, chunk in zip(self.rows, chunks, strict=True) if chunk]
        np.testing.assert_allclose(np.array(logits), np.concatenate(expected), atol=2e-4)
        self.rows = [held + chunk[:kept] for held, chunk, kept in zip(self.rows, chunks, keep, strict=True)]

    def append(self) -> None:
        self.cache.append_row()
        self.rows.append([])

    def remove(self, row: int) -> None:
        self.cache.remove_row(row, len(self.rows[-1]))
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def take(self, other: Mirror, row: int) -> None:
        self.cache.append_row_from(other.cache, row, len(other.rows[row]))
        self.rows.append(list(other.rows[row]))


tokens = st.integers(0, tiny.VOCAB - 1)
operations = st.lists(
    st.one_of(
        st.just("append"),
        st.tuples(st.just("remove"), st.integers(0, 100)),
        st.tuples(st.just("move"), st.integers(0, 100)),
        st.tuples(st.just("read"), st.lists(st.tuples(st.lists(tokens, max_size=7), st.integers(0, 7)), max_size=6)),
    ),
    max_size=14,
)


@settings(max_examples=40)
@given(steps=operations)
def test_logits_are_those_of_each_row_alone_whatever_happened_before(steps: list[Any]) -> None:
    batch, other = Mirror(), Mirror()
    for step in steps:
        if step == "append":
            batch.append()
        elif step[0] == "remove" and batch.rows:
            batch.remove(step[1] % len(batch.rows))
        elif step[0] == "move" and batch.rows:
            row = step[1] % len(batch.rows)
            other.take(batch, row)
            batch.remove(row)
        elif step[0] == "read" and batch.rows:
            plan = [*step[1], *[([1, 2], 1)] * len(batch.rows)][: len(batch.rows)]
            if any(chunk for chunk, _ in plan):
                batch.forward([chunk for chunk, _ in plan], [min(kept, len(chunk)) for chunk, kept in plan])
    if other.rows:
        other.forward([[5]] * len(other.rows), [1] * len(other.rows))


def test_rows_grow_past_the_first_buffer() -> None:
    batch = Mirror()
    batch.append()
    batch.append()
    long = [int(t) for t in np.random.default_rng(0).integers(0, tiny.VOCAB, CAPACITY_STEP - 3)]
    batch.forward([long, [1, 2]], [len(long), 2])
    batch.forward([[1, 2, 3, 4, 5, 6], [3]], [4, 1])
    batch.forward([[7, 8], [4, 5]], [2, 2])


def test_a_rejected_tail_costs_nothing_and_leaves_no_trace() -> None:
    batch = Mirror()
    batch.append()
    batch.forward([[1, 2, 3, 4]], [2])
    batch.forward([[9, 9, 9, 9, 9, 9]], [0])
    batch.forward([[5, 6]], [2])


@pytest.mark.slow
@pytest.mark.parametrize(("length", "freed"), [(3, False), (IDLE_BUFFER_TOKENS + 1, True)])
def test_an_emptied_cache_gives_large_buffers_back_and_uses_small_ones_again(length: int, freed: bool) -> None:
    batch = Mirror()
    batch.append()
    batch.forward([[1] * length], [length])
    batch.remove(0)
    assert all((layer.keys is None) == freed for layer in batch.cache.layers)
    batch.append()
    batch.forward([[4, 5]], [2])


def test_the_first_rows_may_read_alone() -> None:
    cache, whole = RaggedCache(LanguageModel(tiny.model())), RaggedCache(LanguageModel(tiny.model()))
    for one in (cache, whole):
        for _ in range(3):
            one.append_row()
        one.forward(Inputs.of([[1, 2], [3], [4, 5, 6]]), [0, 0, 0])
    logits = cache.forward(Inputs.of([[7], [8, 9]]), [2, 1])
    expected = whole.forward(Inputs.of([[7], [8, 9], []]), [2, 1, 3])
    np.testing.assert_allclose(np.array(logits), np.array(expected), atol=1e-4)
    after, expected = (one.forward(Inputs.of([[1]] * 3), [3, 3, 3]) for one in (cache, whole))
    np.testing.assert_allclose(np.array(after), np.array(expected), atol=1e-4)


def test_room_for_rows_that_are_to_come_is_made_once() -> None:
    batch, source = RaggedCache(LanguageModel(tiny.model())), RaggedCache(LanguageModel(tiny.model()))
    for _ in range(5):
        source.append_row()
    source.forward(Inputs.of([[1, 2]] * 5), [0] * 5)
    batch.reserve(5)
    batch.append_row_from(source, 0, 2)
    slots = [layer.keys.shape[0] for layer in batch.layers if layer.keys is not None]
    assert slots == [8, 8]


def test_a_copy_of_a_row_is_no_larger_than_it_need_be() -> None:
    batch = Mirror()
    batch.append()
    batch.append()
    batch.forward([[1, 2, 3, 4], [5, 6]], [4, 2])
    copied = batch.cache.copy_row(0, 3)
    for copy, layer in zip(copied.layers, batch.cache.layers, strict=True):
        assert copy.keys is not None
        assert layer.keys is not None
        assert copy.keys.shape == (1, 2, 4, 12)
        np.testing.assert_array_equal(np.array(copy.keys[:, :, :3]), np.array(layer.keys[:1, :, :3]))


def test_a_write_that_does_not_fit_is_refused_before_it_reaches_an_array() -> None:
    layout = Layout()
    layout.slots, layout.capacity = 2, 8
    layout.place([0, 4], 4)
    with pytest.raises(RuntimeError, match="does not fit"):
        layout.place([0, 5], 4)
    with pytest.raises(RuntimeError, match="does not fit"):
        layout.place([0, 0, 0], 1)


def test_windows_hide_what_lies_behind_them() -> None:
    layout = Layout()
    layout.slots, layout.capacity = 2, 16
    layout.place([5, 9], 2)
    mask = np.array(layout.mask(window=3, as_array=True))
    for row, start in enumerate([5, 9]):
        for query in range(2):
            seen = np.flatnonzero(mask[row, 0, query])
            assert list(seen) == list(range(start + query - 2, start + query + 1))
