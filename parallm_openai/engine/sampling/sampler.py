"""Draw each position's token: greedily, from the largest logits, or from all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np

from parallm_openai.engine.position import Position
from parallm_openai.engine.sampling import noise
from parallm_openai.engine.sampling.adjustments import adjust
from parallm_openai.engine.sampling.candidates import (
    FORBIDDEN,
    Candidates,
    gathered,
    in_blocks,
    largest,
    tokens_in,
    top_blocks,
)
from parallm_openai.engine.sampling.truncation import kept_floor, truncates

# Stands for a token that could not be chosen.
NO_TOKEN = -1
# How many candidates are tried, until they hold all that a row keeps. The first is for small top-k alone.
SHORT, LONG, LONGEST = 64, 256, 4096
# Blocks that are drawn from if nothing is truncated: those whose tokens could get the highest scores.
CONTENDING_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """Positions to draw, their adjusted logits `[rows, vocab]`, temperatures `[rows, 1]` and keys `[rows, 2]`."""

    positions: Sequence[Position]
    logits: mx.array
    temperatures: mx.array
    keys: mx.array

    @classmethod
    def of(cls, positions: Sequence[Position], logits: mx.array) -> Rows:
        temperatures = mx.array([[p.params.temperature] for p in positions])
        return cls(positions, logits, temperatures, noise.keys_of(positions))

    def only(self, rows: Sequence[int]) -> Rows:
        if len(rows) == len(self.positions):
            return self
        index = mx.array(list(rows))
        positions = [self.positions[row] for row in rows]
        return Rows(positions, self.logits[index], self.temperatures[index], self.keys[index])

    @property
    def vocab_size(self) -> int:
        return int(self.logits.shape[-1])


def sample(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Choose a token for each row of `[len(positions), vocab]` logits; returns ids `[len(positions)]`.

    Greedy rows take the argmax; the others `argmax(log p + Gumbel noise)`, which is a draw from p.
    """
    logits = adjust(logits.astype(mx.float32), positions)
    drawn = [row for row, position in enumerate(positions) if not position.params.greedy]
    if not drawn:
        return mx.argmax(logits, axis=-1)
    everyone = len(drawn) == len(positions)
    rows = Rows.of([positions[row] for row in drawn], logits if everyone else logits[mx.array(drawn)])
    tokens = mx.array(_draw(rows))
    if everyone:
        return tokens
    merged = mx.argmax(logits, axis=-1).astype(mx.int32)
    merged[mx.array(drawn)] = tokens
    return merged


def _draw(rows: Rows) -> np.ndarray:
    """The token of each row, in the cheapest way that is sure to find it."""
    tokens = np.zeros(len(rows.positions), dtype=np.int32)
    truncated = [row for row, p in enumerate(rows.positions) if truncates(p.params, rows.vocab_size)]
    untruncated = sorted(set(range(len(rows.positions))).difference(truncated))
    ways = [partial(_draw_candidates, count) for count in _counts(rows, truncated)]
    _draw_first_sure(rows, truncated, [*ways, _draw_all], tokens)
    _draw_first_sure(rows, untruncated, (_draw_contenders, _draw_all), tokens)
    return tokens


Way = Callable[[Rows], tuple[mx.array, mx.array]]
"""Draws a token for each row, and says whether it is sure to be the right one."""


def _draw_first_sure(rows: Rows, pending: Sequence[int], ways: Sequence[Way], tokens: np.ndarray) -> None:
    for way in ways:
        if not pending:
            return
        drawn, sure = way(rows.only(pending))
        mx.eval(drawn, sure)
        tokens[pending] = np.array(drawn)
        pending = [row for row, known in zip(pending, np.array(sure).tolist(), strict=True) if not known]


def _counts(rows: Rows, truncated: Sequence[int]) -> Sequence[int]:
    """How many candidates to try, one after the other."""
    small = all(0 < rows.positions[row].params.top_k < SHORT for row in truncated)
    counts = (SHORT if small else LONG, LONGEST)
    return [count for count in counts if count < rows.vocab_size]


def _draw_candidates(count: int, rows: Rows) -> tuple[mx.array, mx.array]:
    """Draw from the largest logits; sure if all that a row keeps are among them."""
    candidates = _candidates(rows, count)
    params = [position.params for position in rows.positions]
    floor, sure = kept_floor(candidates, rows.logits, rows.temperatures, params)
    noisy = candidates.values + noise.token_noise(rows.keys, candidates.tokens)
    best = mx.argmax(mx.where(candidates.values < floor, FORBIDDEN, noisy), axis=-1, keepdims=True)
    return mx.take_along_axis(candidates.tokens, best, axis=-1)[:, 0], sure


def _candidates(rows: Rows, count: int) -> Candidates:
    """The largest logits, divided by the temperatures."""
    found = largest(rows.logits, count)
    return Candidates(found.values / rows.temperatures, found.tokens)


def _draw_contenders(rows: Rows) -> tuple[mx.array, mx.array]:
    """Draw without truncation, from the blocks that could win by their largest logit and their largest noise.

    Sure if the winner beats the bound of the last of these blocks, and so those of all others.
    """
    blocks = in_blocks(rows.logits)
    highest = noise.largest_noise(rows.keys, noise.all_blocks(len(rows.positions), rows.vocab_size))
    bounds = blocks.max(axis=-1) / rows.temperatures + highest
    chosen = top_blocks(bounds, CONTENDING_BLOCKS)
    within = noise.block_noise(rows.keys, chosen, mx.take_along_axis(highest, chosen, axis=-1))
    scores = gathered(blocks, chosen) / rows.temperatures[..., None] + within
    scores = scores.reshape(len(rows.positions), -1)
    best = mx.argmax(scores, axis=-1, keepdims=True)
    least = mx.take_along_axis(bounds, chosen, axis=-1).min(axis=-1)
    complete = mx.array(chosen.shape[-1] == bounds.shape[-1])
    sure = complete | (mx.take_along_axis(scores, best, axis=-1)[:, 0] > least)
    return mx.take_along_axis(tokens_in(chosen), best, axis=-1)[:, 0], sure


def _draw_all(rows: Rows) -> tuple[mx.array, mx.array]:
    """Draw from the whole vocabulary: always sure, and slow."""
    noisy = _truncated(rows) + noise.gumbel_noise(rows.keys, rows.vocab_size)
    return mx.argmax(noisy, axis=-1), mx.full((len(rows.positions),), True)


def _truncated(rows: Rows) -> mx.array:
    """The rows' tempered logits, -inf for what they do not keep."""
    tempered = rows.logits / rows.temperatures
    params = [position.params for position in rows.positions]
    if not any(truncates(p, rows.vocab_size) for p in params):
        return tempered
    floor, _ = kept_floor(_candidates(rows, rows.vocab_size), rows.logits, rows.temperatures, params)
    return mx.where(tempered < floor, FORBIDDEN, tempered)


def log_distribution(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """The distribution that each row draws from, as unnormalised logarithms `[len(positions), vocab]`."""
    return _truncated(Rows.of(positions, adjust(logits.astype(mx.float32), positions)))


def checked(tokens: mx.array, logits: mx.array) -> mx.array:
    """The tokens chosen from `[len(tokens), vocab]` logits, `NO_TOKEN` if those are not numbers.

    A NaN among what a position has read makes all of its logits NaN, so that the chosen token's tells.
    """
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return mx.where(mx.isnan(chosen), NO_TOKEN, tokens.astype(mx.int32))


def as_ids(tokens: mx.array) -> list[int]:
    """The ids of a one-dimensional array; computes it."""
    ids: list[int] = np.array(tokens).tolist()
    return ids
