"""Drawing from the largest logits is drawing from all of them, only faster."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallm_openai.engine import sampling
from parallm_openai.engine.position import Position, TokenHistory
from parallm_openai.engine.request import SamplingParams
from parallm_openai.engine.sampling import noise, sampler
from parallm_openai.engine.sampling.candidates import largest
from parallm_openai.engine.sampling.truncation import kept_floor

VOCABS = [1000, 4096, 50_257]
LARGEST_VOCAB = 262_144


def normal(dice: np.random.Generator, vocab: int) -> np.ndarray:
    return dice.normal(0, 2.5, vocab)


def peaked(dice: np.random.Generator, vocab: int) -> np.ndarray:
    logits = dice.normal(0, 1, vocab)
    logits[dice.integers(vocab, size=3)] += 15
    return logits


def flat(dice: np.random.Generator, vocab: int) -> np.ndarray:
    return np.zeros(vocab)


def tied(dice: np.random.Generator, vocab: int) -> np.ndarray:
    return dice.integers(0, 6, vocab).astype(float)


def masked(dice: np.random.Generator, vocab: int) -> np.ndarray:
    logits = dice.normal(0, 2, vocab)
    allowed = dice.choice(vocab, dice.integers(1, 40), replace=False)
    return np.where(np.isin(np.arange(vocab), allowed), logits, -np.inf)


SHAPES = [normal, peaked, flat, tied, masked]
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.8]),
    top_p=st.sampled_from([0.0, 0.5, 0.95, 0.999, 1.0, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 20, 63, 64, 256, 700]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


def batch(shapes: Sequence[int], vocab: int, seed: int) -> mx.array:
    dice = np.random.default_rng(seed)
    return mx.array(np.stack([SHAPES[shape](dice, vocab) for shape in shapes]).astype(np.float32))


@settings(max_examples=60)
@given(
    drawn=st.lists(st.tuples(params, st.integers(0, len(SHAPES) - 1)), min_size=1, max_size=8),
    vocab=st.sampled_from(VOCABS),
    seed=st.integers(0, 1000),
)
def test_every_draw_is_the_one_from_the_whole_vocabulary(
    drawn: list[tuple[SamplingParams, int]], vocab: int, seed: int
) -> None:
    logits = batch([shape for _, shape in drawn], vocab, seed)
    positions = [Position(chosen, chosen.seed or 0, 5) for chosen, _ in drawn if not chosen.greedy]
    logits = logits[mx.array([row for row, (chosen, _) in enumerate(drawn) if not chosen.greedy], dtype=mx.int32)]
    if not positions:
        return
    expected, _ = sampler._draw_all(sampler.Rows.of(positions, logits))
    assert sampling.sample(logits, positions) == expected.tolist()


def floor_by_the_book(logits: np.ndarray, chosen: SamplingParams) -> float:
    """The least logit kept: sort, cut to k, cut to p, and no less than min-p times the largest probability."""
    x = np.sort(logits.astype(np.float64))[::-1]
    if 0 < chosen.top_k < len(x):
        x = x[: chosen.top_k]
    p = np.exp(x - x[0])
    p /= p.sum()
    kept = (np.cumsum(p) - p < chosen.top_p) & (p > 0) if chosen.top_p < 1 else np.isfinite(x)
    floor = x[max(int(kept.sum()), 1) - 1]
    return max(floor, x[0] + np.log(chosen.min_p)) if chosen.min_p > 0 else floor


@settings(max_examples=60)
@given(
    chosen=params,
    shape=st.integers(0, len(SHAPES) - 1),
    vocab=st.sampled_from([*VOCABS, LARGEST_VOCAB]),
    count=st.sampled_from([64, 256, 4096]),
    seed=st.integers(0, 1000),
)
def test_the_kept_set_is_that_of_a_full_sort_whenever_it_is_said_to_be_sure(
    chosen: SamplingParams, shape: int, vocab: int, count: int, seed: int
) -> None:
    logits = batch([shape], vocab, seed)
    count = min(count, vocab)
    floor, sure = kept_floor(largest(logits, count), logits, mx.array([[1.0]]), [chosen])
    if not sure.item():
        return
    row = np.array(logits)[0]
    kept, expected = int((row >= floor.item()).sum()), int((row >= floor_by_the_book(row, chosen)).sum())
    # A nucleus ends where a sum passes top-p: single precision may put that one token apart.
    assert abs(kept - expected) <= (chosen.top_p not in (0.0, 1.0)) * max(1, kept // 500)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("count", [1, 20, 300, 5000, 60_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_logits_are_those_of_a_sort(vocab: int, count: int, shape: object) -> None:
    logits = batch([SHAPES.index(shape)] * 3, vocab, 3)  # type: ignore[arg-type]
    found = largest(logits, count)
    expected = -np.sort(-np.array(logits), axis=-1)[:, :count]
    np.testing.assert_array_equal(np.array(found.values), expected)
    np.testing.assert_array_equal(np.take_along_axis(np.array(logits), np.array(found.tokens), axis=-1), expected)
    assert all(len(set(row)) == len(row) for row in np.array(found.tokens).tolist())


def keys(seeds: Sequence[int]) -> mx.array:
    return sampling.keys_of([Position(SamplingParams(), seed, 7) for seed in seeds])


def test_a_tokens_noise_is_the_same_alone_and_with_the_whole_vocabulary() -> None:
    whole = np.array(sampling.gumbel_noise(keys(range(5)), 1003))
    tokens = mx.array(np.random.default_rng(0).integers(0, 1003, (5, 90)).astype(np.int32))
    some = np.array(noise.token_noise(keys(range(5)), tokens))
    np.testing.assert_array_equal(some, np.take_along_axis(whole, np.array(tokens), axis=-1))


def test_noise_is_gumbels_and_independent_between_tokens() -> None:
    drawn = np.array(sampling.gumbel_noise(keys(range(2000)), 64)).astype(np.float64)
    # Kolmogorov-Smirnov against exp(-exp(-g)); at 128,000 numbers 0.0057 is passed once in a thousand times.
    ordered = np.sort(drawn.ravel())
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    assert np.abs(np.exp(-np.exp(-ordered)) - steps).max() < 0.0057
    uniform = np.exp(-np.exp(-drawn))
    correlations = np.corrcoef(uniform, rowvar=False) - np.eye(64)
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)
    # Each token of a block is its largest equally often: 15 degrees of freedom, p < 1e-4 above 44.
    places = drawn.reshape(-1, noise.BLOCK).argmax(axis=-1)
    counts = np.bincount(places, minlength=noise.BLOCK)
    expected = len(places) / noise.BLOCK
    assert ((counts - expected) ** 2 / expected).sum() < 44


@pytest.mark.parametrize("chosen", [{}, {"top_p": 0.9}, {"top_k": 40}, {"temperature": 0.7}], ids=str)
@pytest.mark.parametrize("planted", [False, True], ids=["as it is", "with a planted error"])
def test_draws_of_a_large_vocabulary_follow_the_distribution(
    chosen: dict[str, float], planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chi-square over 50,000 tokens in 60 groups; an error that hides 2 % of the blocks' noise must be caught."""
    vocab, count = 50_000, 3_000
    logits = np.random.default_rng(1).normal(0, 3.5, vocab).astype(np.float32)
    given_params = SamplingParams(**chosen)  # type: ignore[arg-type]
    if planted:
        honest = noise.largest_noise
        monkeypatch.setattr(noise, "largest_noise", lambda k, blocks: honest(k, blocks) + 0.5 * (blocks % 3 == 0))
    drawn: list[int] = []
    for start in range(0, count, 100):
        positions = [Position(given_params, seed, 3) for seed in range(start, start + 100)]
        drawn += sampling.sample(mx.array(np.tile(logits, (100, 1))), positions)
    scaled = logits.astype(np.float64) / given_params.temperature
    kept = scaled >= floor_by_the_book(scaled, given_params)
    p = np.where(kept, np.exp(scaled - scaled.max()), 0)
    p /= p.sum()
    # Groups of blocks, so that an error in a block's noise does not cancel out.
    groups = (np.arange(vocab) // noise.BLOCK) % 60
    expected = np.bincount(groups, weights=p, minlength=60) * count
    seen = np.bincount(groups[np.array(drawn)], minlength=60)
    used = expected > 5
    statistic = ((seen - expected)[used] ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    score = (statistic - freedom) / np.sqrt(2 * freedom)
    assert score > 8 if planted else abs(score) < 4.5


def test_the_history_of_a_row_counts_what_was_generated_and_what_is_drafted() -> None:
    history = TokenHistory([5, 9, 5])
    for token in (9, 2, 9):
        history.add(token)
    tokens, counts = history.counts((2, 7, 7))
    assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == {5: 0, 9: 2, 2: 2, 7: 2}
    tokens, counts = history.counts()
    assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == {5: 0, 9: 2, 2: 1}
