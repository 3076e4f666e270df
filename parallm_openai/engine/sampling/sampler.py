"""Draw each position's token: greedily, from the largest logits, or from all of them."""

from __future__ import annotations

from collections.abc import Sequence
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
# How many candidates are tried, until they hold all that a row keeps. The first number is for small top-k alone.
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


def sample(logits: mx.array, positions: Sequence[Position]) -> list[int]:
    """Choose a token for each row of `[len(positions), vocab]` logits; `NO_TOKEN` if those are not numbers.

    Greedy rows take the argmax; the others `argmax(log p + Gumbel noise)`, which is a draw from p.
    """
    return Draw.of(logits, positions).ids()


@dataclass(frozen=True, slots=True)
class Draw:
    """Tokens that the device is computing, one for each position, in the way that is right for nearly all of them.

    `logits` are the adjusted ones `[rows, vocab]`. A token that is not `sure` may be wrong, and one that is no `number`
    was chosen among logits that are not numbers.
    """

    positions: Sequence[Position]
    logits: mx.array
    tokens: mx.array
    sure: mx.array
    number: mx.array

    @classmethod
    def of(cls, logits: mx.array, positions: Sequence[Position]) -> Draw:
        adjusted = adjust(logits.astype(mx.float32), positions)
        tokens, sure = _first_draw(adjusted, positions)
        # A NaN among what a position has read makes all of its logits NaN, so that the chosen token's tells.
        chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        return cls(positions, adjusted, tokens, sure, mx.logical_not(mx.isnan(chosen)))

    def ids(self) -> list[int]:
        """Wait for the tokens, and draw again those that are not sure. `NO_TOKEN` for what is no number."""
        mx.eval(self.tokens, self.sure, self.number)
        tokens = np.array(self.tokens)
        if unsure := np.flatnonzero(~np.array(self.sure)).tolist():
            tokens[unsure] = self._again(unsure)
        ids: list[int] = np.where(np.array(self.number), tokens, NO_TOKEN).tolist()
        return ids

    @property
    def all_sure(self) -> bool:
        """Whether `tokens` are the tokens; waits for them."""
        return bool(self.sure.all().item()) and bool(self.number.all().item())

    def _again(self, unsure: Sequence[int]) -> np.ndarray:
        rows = Rows.of([self.positions[row] for row in unsure], self.logits[mx.array(list(unsure))])
        tokens = np.zeros(len(unsure), dtype=np.int32)
        pending = list(range(len(unsure)))
        for way in (partial(_draw_candidates, min(LONGEST, rows.vocab_size)), _draw_all):
            if pending:
                drawn, sure = way(rows.only(pending))
                mx.eval(drawn, sure)
                tokens[pending] = np.array(drawn)
                pending = [row for row, known in zip(pending, np.array(sure).tolist(), strict=True) if not known]
        return tokens


def _first_draw(logits: mx.array, positions: Sequence[Position]) -> tuple[mx.array, mx.array]:
    """Tokens, in the cheapest way for each kind of row, and whether each is sure to be right. Computes nothing yet."""
    vocab = logits.shape[-1]
    greedy = [row for row, p in enumerate(positions) if p.params.greedy]
    drawn = [row for row, p in enumerate(positions) if not p.params.greedy]
    truncated = [row for row in drawn if truncates(positions[row].params, vocab)]
    untruncated = [row for row in drawn if not truncates(positions[row].params, vocab)]
    parts: list[tuple[Sequence[int], tuple[mx.array, mx.array]]] = []
    if greedy:
        best = mx.argmax(_only(logits, greedy), axis=-1)
        parts.append((greedy, (best, mx.full(best.shape, True))))
    if truncated:
        rows = Rows.of([positions[row] for row in truncated], _only(logits, truncated))
        parts.append((truncated, _draw_candidates(_first_count(rows), rows)))
    if untruncated:
        rows = Rows.of([positions[row] for row in untruncated], _only(logits, untruncated))
        parts.append((untruncated, _draw_contenders(rows)))
    if len(parts) == 1:
        tokens, sure = parts[0][1]
        return tokens.astype(mx.int32), sure
    order = np.argsort([row for rows, _ in parts for row in rows])
    back = mx.array(order.astype(np.int32))
    tokens = mx.concatenate([drawn.astype(mx.int32) for _, (drawn, _) in parts])
    return tokens[back], mx.concatenate([sure for _, (_, sure) in parts])[back]


def _only(logits: mx.array, rows: Sequence[int]) -> mx.array:
    return logits if len(rows) == logits.shape[0] else logits[mx.array(list(rows))]


def _first_count(rows: Rows) -> int:
    """How many candidates to try first."""
    small = all(0 < position.params.top_k < SHORT for position in rows.positions)
    return min(SHORT if small else LONG, rows.vocab_size)


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


def as_ids(tokens: mx.array) -> list[int]:
    """The ids of a one-dimensional array; computes it."""
    ids: list[int] = np.array(tokens).tolist()
    return ids
