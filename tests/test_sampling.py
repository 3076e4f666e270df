"""Each row's token depends on its own logits, parameters, seed and place, and on nothing else."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from parallm_openai.engine import sampling
from parallm_openai.engine.position import Position, TokenHistory
from parallm_openai.engine.request import Request, SamplingParams

VOCAB = 23

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, VOCAB, 1000]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -1.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=4),
)
token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=6)
rows = st.lists(st.tuples(params, token_lists, token_lists, token_lists), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=150)
@given(drawn=rows, seed=st.integers(0, 1000))
def test_a_batch_samples_what_a_plain_decoder_samples_row_by_row(
    drawn: list[tuple[SamplingParams, list[int], list[int], list[int]]], seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (len(drawn), VOCAB)).astype(np.float32)
    positions = []
    for chosen, prompt, generated, drafts in drawn:
        history = TokenHistory(prompt)
        for token in generated:
            history.add(token)
        positions.append(Position(chosen, chosen.seed or 0, len(generated) + len(drafts), history, tuple(drafts)))
    got: Any = sampling.sample(mx.array(logits), positions)
    for row, (chosen, prompt, generated, drafts) in enumerate(drawn):
        request = Request(tuple(prompt), chosen)
        assert got[row] == tiny.choose(logits[row], request, [*generated, *drafts], set())


def test_sampling_leaves_the_models_logits_as_they_are() -> None:
    logits = mx.array(np.random.default_rng(0).normal(size=(2, VOCAB)).astype(np.float32))
    before = np.array(logits)
    position = Position(SamplingParams(logit_bias={1: 50.0}, temperature=0), 0, 0)
    sampling.sample(logits, [position, position])
    assert np.array_equal(np.array(logits), before)


def test_noise_is_a_function_of_seed_and_place() -> None:
    def noise(*places: tuple[int, int]) -> np.ndarray:
        positions = [Position(SamplingParams(), seed, index) for seed, index in places]
        return np.array(sampling.gumbel_noise(sampling.keys_of(positions), 50))

    together = noise((1, 0), (1, 1), (2, 0), (1, 0))
    assert np.array_equal(together[0], noise((1, 0))[0])
    assert np.array_equal(together[0], together[3])
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(together[0], together[2])


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1, 2**64 - 1, -1, -(2**63)])
def test_every_seed_is_usable(seed: int) -> None:
    first, second = sampling.noise_key(seed, 0)
    assert 0 <= first < 2**32
    assert 0 <= second < 2**32
    assert sampling.noise_key(seed, 1) != (first, second)


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 40,000 draws, one seed each, over 8 tokens: 7 degrees of freedom."""
    logits = np.array([0.0, 1.0, 2.0, -1.0, 0.5, 1.5, -2.0, 0.2], dtype=np.float32)
    count = 40_000
    positions = [Position(SamplingParams(), seed, 3) for seed in range(count)]
    tokens = np.array(sampling.sample(mx.array(np.tile(logits, (count, 1))), positions))
    expected = np.exp(logits) / np.exp(logits).sum() * count
    statistic = ((np.bincount(tokens, minlength=8) - expected) ** 2 / expected).sum()
    assert statistic < 30  # p < 1e-4


def test_the_chosen_logprob_equals_the_top_one_bit_for_bit() -> None:
    logits = mx.array(np.random.default_rng(1).normal(0, 5, (20, 500)).astype(np.float32))
    tokens: Any = mx.argmax(logits, axis=-1).tolist()
    for scored in sampling.token_logprobs(logits, tokens, [5] * 20):
        assert scored.top[0] == (scored.token, scored.logprob)
        assert [p for _, p in scored.top] == sorted((p for _, p in scored.top), reverse=True)


def test_each_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    logits = mx.array(np.random.default_rng(1).normal(0, 5, (3, 12)).astype(np.float32))
    scored = sampling.token_logprobs(logits, [1, 2, 3], [0, 12, 2])
    assert [len(entry.top) for entry in scored] == [0, 12, 2]


def test_half_precision_logits_are_sampled_in_single_precision() -> None:
    logits = mx.array([[0.0, 1.0, 5.0]]).astype(mx.bfloat16)
    assert sampling.sample(logits, [Position(SamplingParams(temperature=0), 0, 0)]) == [2]
    (scored,) = sampling.token_logprobs(logits, [2], [1])
    assert scored.logprob == pytest.approx(-0.0248, abs=1e-3)
