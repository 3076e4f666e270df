"""Every family's batched logits are those of its rows alone, in mlx-lm's own caches."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from support import families

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.kv import Layout, RaggedCache
from parallm_openai.engine.cache.native import NativeCache, NativePrefill
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.capabilities import Batching, UnsupportedModelError, probe
from parallm_openai.models.language_model import LanguageModel

TOLERANCE = 1e-4

# Length, tokens read before decoding, and the round it joins in; some are longer than any sliding window,
# one decodes from its first token, and they end at different times.
ROWS = ((34, 20, 0), (12, 5, 0), (26, 0, 1), (9, 8, 3), (30, 13, 5), (5, 1, 6))


@dataclass
class Sequence:
    tokens: list[int]
    prompt: int
    joins: int
    expected: np.ndarray = field(repr=False)
    read: int = 0

    @property
    def left(self) -> int:
        return len(self.tokens) - self.read


def sequences(network: nn.Module) -> list[Sequence]:
    dice = random.Random(1)
    made = []
    for length, prompt, joins in ROWS:
        tokens = [dice.randrange(families.VOCAB) for _ in range(length)]
        made.append(Sequence(tokens, prompt, joins, alone(network, tokens)))
    return made


def alone(network: nn.Module, tokens: list[int]) -> np.ndarray:
    """Logits of one row, read token by token in mlx-lm's own cache."""
    cache = make_prompt_cache(network)
    return np.array(mx.concatenate([network(mx.array([[token]]), cache=cache)[0] for token in tokens]))


def rounding(network: nn.Module) -> float:
    """How far a row's logits are from themselves where it is read at once: what float32 leaves open.

    Recurrences add it up: Jamba's is larger than `TOLERANCE` where single rows are rounded unlike several.
    """
    rows = sequences(network)
    at_once = [network(mx.array([row.tokens]), cache=make_prompt_cache(network))[0] for row in rows]
    return max(float(np.abs(np.array(logits) - row.expected).max()) for logits, row in zip(at_once, rows, strict=True))


def prefill(cache: BatchCache, rows: list[Sequence], chunk: int) -> None:
    """Read the prompts of rows that join together, in chunks of unequal length."""
    for _ in rows:
        cache.append_row()
    while any(row.read < row.prompt for row in rows):
        chunks = [row.tokens[row.read : min(row.read + chunk, row.prompt)] for row in rows]
        cache.forward(Inputs.of(chunks, [0] * len(chunks)), [row.read for row in rows])
        cache.evaluate()
        for row, part in zip(rows, chunks, strict=True):
            row.read += len(part)


def decode(cache: BatchCache, rows: list[Sequence], dice: random.Random, longest: int) -> float:
    """One step: every row is given its next tokens and a wrong tail, and keeps the former."""
    kept = [dice.randint(1, min(longest, row.left)) for row in rows]
    wrong = [[dice.randrange(families.VOCAB) for _ in range(dice.randint(0, longest - count))] for count in kept]
    given = [row.tokens[row.read : row.read + count] + tail for row, count, tail in zip(rows, kept, wrong, strict=True)]
    logits = np.array(cache.forward(Inputs.of(given), [row.read for row in rows]))
    worst, start = 0.0, 0
    for row, count, tokens in zip(rows, kept, given, strict=True):
        expected = row.expected[row.read : row.read + count]
        worst = max(worst, float(np.abs(logits[start : start + count] - expected).max()))
        start += len(tokens)
        row.read += count
    return worst


def largest_difference(network: nn.Module, *, ragged: bool) -> float:
    """Run all rows through a batch that they join and leave; the largest difference to the rows alone."""
    dice = random.Random(2)
    waiting = sequences(network)
    running: list[Sequence] = []
    axes = 5 if network.model_type == "gemma2" else 4
    model = LanguageModel(network)
    prefilling: BatchCache = RaggedCache(model, axes) if ragged else NativePrefill(model)
    decoding: BatchCache = RaggedCache(model, axes) if ragged else NativeCache(model)
    worst, step = 0.0, 0
    while waiting or running:
        joining = [row for row in waiting if row.joins <= step]
        waiting = [row for row in waiting if row.joins > step]
        prefill(prefilling, joining, chunk=6)
        while joining:
            decoding.append_row_from(prefilling, 0, joining[0].read)
            prefilling.remove_row(0, joining[-1].read)
            running.append(joining[0])
            # The last row takes the place of the one removed.
            joining[0] = joining[-1]
            joining.pop()
        if running:
            worst = max(worst, decode(decoding, running, dice, longest=4 if ragged else 1))
        for index in reversed(range(len(running))):
            if running[index].left == 0:
                decoding.remove_row(index, running[-1].read)
                running[index] = running[-1]
                running.pop()
        step += 1
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("family", families.RAGGED)
def test_a_ragged_batch_computes_what_each_row_computes_alone(family: str) -> None:
    assert largest_difference(families.model(family), ragged=True) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", families.NATIVE)
def test_mlx_lms_batch_computes_what_each_row_computes_alone(family: str) -> None:
    network = families.model(family)
    assert largest_difference(network, ragged=False) < max(TOLERANCE, 2 * rounding(network))


@pytest.mark.slow
@pytest.mark.parametrize("family", families.RAGGED)
def test_families_of_plain_keys_and_values_may_speculate(family: str) -> None:
    found = probe(families.model(family), families.VOCAB)
    assert found.batching is Batching.RAGGED
    assert found.speculation


@pytest.mark.parametrize("family", families.NATIVE)
def test_families_with_other_state_are_batched_without_speculation(family: str) -> None:
    found = probe(families.model(family), families.VOCAB)
    assert found.batching is Batching.NATIVE
    assert not found.speculation
    assert "not plain keys and values" in found.reason


@pytest.mark.slow
def test_a_family_that_the_ragged_cache_fails_on_falls_back_to_mlx_lms_batch() -> None:
    found = probe(families.model("gemma3n"), families.VOCAB)
    assert found.batching is Batching.NATIVE
    assert not found.speculation
    assert "in a ragged batch it fails" in found.reason
    assert largest_difference(families.model("gemma3n"), ragged=False) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt_bigcode", "in mlx-lm's batch caches it fails"),
        ("afm7", "in mlx-lm's batch caches its logits differ from single rows"),
        ("llama4", "its cache is not plain keys and values"),
    ],
)
def test_a_family_that_neither_cache_serves_is_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be served in a batch") as refusal:
        probe(families.model(family), families.VOCAB)
    assert reason in str(refusal.value)


class Disturbed(nn.Module):
    """A Llama whose rows disturb each other: its logits depend on how many there are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = families.model("llama")

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.inner.layers)

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        logits: mx.array = self.inner(tokens, cache=cache)
        return logits + 0.1 * (tokens.shape[0] - 1)


def test_wrong_numbers_are_found_not_only_failures() -> None:
    with pytest.raises(UnsupportedModelError, match="in a ragged batch its logits differ"):
        probe(Disturbed(), families.VOCAB)


def test_the_largest_differences_show_where_a_window_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has the power to see what it is there for."""
    mask = Layout.mask
    monkeypatch.setattr(Layout, "mask", lambda self, window, as_array: mask(self, None, as_array))
    assert largest_difference(families.model("llama_sliding"), ragged=True) > 100 * TOLERANCE
