"""Per-row sampling of a whole batch in one vectorised pass.

A token is a function of its logits, its request's parameters, its seed and its place
in the request, never of the neighbours: the noise of the Gumbel-max draw is keyed by
(seed, index), so the same request yields the same tokens alone and in any batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from parallm_openai.engine.position import TOKEN_STREAM, Position
from parallm_openai.engine.request import SamplingParams, TokenLogprob

FORBIDDEN = -float("inf")
# Stands for a token that could not be chosen.
NO_TOKEN = -1
_WORD = 0xFFFFFFFF


def noise_key(seed: int, index: int, stream: int = TOKEN_STREAM) -> tuple[int, int]:
    """The 64-bit Threefry key of a request's `index`-th token; seeds are scattered by SplitMix64."""
    mixed = (seed + (stream + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    mixed ^= mixed >> 31
    return mixed & _WORD, ((mixed >> 32) + index) & _WORD


def gumbel_noise(positions: Sequence[Position], vocab_size: int) -> mx.array:
    """Standard Gumbel noise `[len(positions), vocab_size]`, each row from its own key."""
    return mx.vmap(lambda key: mx.random.gumbel((vocab_size,), key=key))(_keys(positions))


def uniform_noise(positions: Sequence[Position]) -> mx.array:
    """One number in [0, 1) a position, from its own key."""
    return mx.vmap(lambda key: mx.random.uniform(key=key))(_keys(positions))


def _keys(positions: Sequence[Position]) -> mx.array:
    keys = [noise_key(p.seed, p.index, p.stream) for p in positions]
    return mx.array(np.array(keys, dtype=np.uint32))


def adjust(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Apply penalties, `logit_bias`, forbidden tokens and grammars to `[len(positions), vocab]` logits."""
    return _constrained(_penalised(logits, positions), positions)


def _constrained(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Take away what a row's grammar does not allow."""
    rows = [row for row, position in enumerate(positions) if position.allowed is not None]
    if not rows:
        return logits
    words = mx.array(np.stack([mask for position in positions if (mask := position.allowed) is not None]))
    bits = ((words[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1).reshape(len(rows), -1)[:, : logits.shape[-1]]
    where = mx.array(rows)
    logits[where] = mx.where(bits == 1, logits[where], FORBIDDEN)
    return logits


def _penalised(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Penalties, bias and forbidden tokens.

    Only the entries concerned are touched: one gather and one scatter for the batch.
    """
    rows: list[int] = []
    ids: list[int] = []
    factor: list[float] = []
    shift: list[float] = []
    for row, position in enumerate(positions):
        for token, (divide, add) in _adjustments(position).items():
            rows.append(row)
            ids.append(token)
            factor.append(divide)
            shift.append(add)
    if not rows:
        return logits
    where = (mx.array(rows), mx.array(ids))
    divisor = mx.array(factor)
    values = logits[where]
    values = mx.where(values > 0, values / divisor, values * divisor) + mx.array(shift)
    logits[where] = values
    return logits


def _adjustments(position: Position) -> dict[int, tuple[float, float]]:
    """Token id -> (repetition divisor, additive change) at one position."""
    params = position.params
    changes = {token: (1.0, bias) for token, bias in params.logit_bias.items()}
    if params.penalised and position.history is not None:
        generated = position.history.generated
        if position.drafts:
            generated = generated + Counter(position.drafts)
        repeated: Iterable[int] = generated
        if params.repetition_penalty != 1:
            repeated = position.history.prompt | generated.keys()
        for token in repeated:
            count = generated[token]
            penalty = params.frequency_penalty * count + (params.presence_penalty if count else 0.0)
            bias = changes.get(token, (1.0, 0.0))[1]
            changes[token] = (params.repetition_penalty, bias - penalty)
    for token in position.forbidden:
        changes[token] = (1.0, FORBIDDEN)
    return changes


def truncate(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Keep each row's top-k, then top-p of what is left, then min-p; the rest becomes -inf.

    `logits` are already divided by the temperature.
    """
    vocab = logits.shape[-1]
    sorting = [row for row, p in enumerate(positions) if p.params.top_p < 1 or 0 < p.params.top_k < vocab]
    if sorting:
        chosen = [positions[row].params for row in sorting]
        if len(sorting) == len(positions):
            floor = _top_k_top_p_floor(logits, chosen)
        else:
            floor = mx.full((len(positions), 1), FORBIDDEN)
            index = mx.array(sorting)
            floor[index] = _top_k_top_p_floor(logits[index], chosen)
        logits = mx.where(logits < floor, FORBIDDEN, logits)
    if any(p.params.min_p > 0 for p in positions):
        # p >= min_p * max(p), in logarithms.
        share = np.log(np.maximum([[p.params.min_p] for p in positions], np.finfo(np.float32).tiny))
        floor = logits.max(axis=-1, keepdims=True) + mx.array(share.astype(np.float32))
        logits = mx.where(logits < floor, FORBIDDEN, logits)
    return logits


def _top_k_top_p_floor(logits: mx.array, params: Sequence[SamplingParams]) -> mx.array:
    """The least logit that each row keeps, `[rows, 1]`."""
    vocab = logits.shape[-1]
    top_k = mx.array([[p.top_k if 0 < p.top_k < vocab else vocab] for p in params])
    top_p = mx.array([[p.top_p] for p in params])
    ranked = -mx.sort(-logits, axis=-1)
    ranked = mx.where(mx.arange(vocab)[None] < top_k, ranked, FORBIDDEN)
    probabilities = mx.softmax(ranked, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    # The first token always stays, so that top_p 0 is the single most likely one.
    kept = ((before < top_p) & (ranked > FORBIDDEN)).sum(axis=-1, keepdims=True)
    return mx.take_along_axis(ranked, mx.maximum(kept, 1) - 1, axis=-1)


def log_distribution(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """The distribution that each row draws from, as unnormalised logarithms `[len(positions), vocab]`."""
    logits = adjust(logits.astype(mx.float32), positions)
    return _tempered(logits, positions)


def _tempered(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    temperatures = mx.array([[p.params.temperature] for p in positions])
    return truncate(logits / temperatures, positions)


def sample(logits: mx.array, positions: Sequence[Position]) -> mx.array:
    """Choose a token for each row of `[len(positions), vocab]` logits; returns ids `[len(positions)]`.

    Greedy rows take the argmax; the others `argmax(log p + Gumbel noise)`, which is a draw from p.
    """
    logits = adjust(logits.astype(mx.float32), positions)
    drawn = [row for row, position in enumerate(positions) if not position.params.greedy]
    if not drawn:
        return mx.argmax(logits, axis=-1)
    chosen = [positions[row] for row in drawn]
    everyone = len(drawn) == len(positions)
    subset = _tempered(logits if everyone else logits[mx.array(drawn)], chosen)
    tokens = mx.argmax(subset + gumbel_noise(chosen, logits.shape[-1]), axis=-1)
    if everyone:
        return tokens
    merged = mx.argmax(logits, axis=-1)
    merged[mx.array(drawn)] = tokens
    return merged


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


def as_floats(values: mx.array) -> list[float]:
    """The numbers of a one-dimensional array; computes it."""
    floats: list[float] = np.array(values).tolist()
    return floats


def token_logprobs(logits: mx.array, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """Log-probabilities of `tokens` under `[len(tokens), vocab]` raw logits, with `tops[i]` alternatives.

    A token that is the most likely one has exactly the value of the first alternative.
    """
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, mx.array(list(tokens))[:, None], axis=-1)[:, 0]
    most = max(tops)
    if most == 0:
        return [TokenLogprob(token, value) for token, value in zip(tokens, as_floats(chosen), strict=True)]
    best = mx.argpartition(-logprobs, kth=min(most, logprobs.shape[-1] - 1), axis=-1)[:, :most]
    values = np.array(mx.take_along_axis(logprobs, best, axis=-1))
    ids = np.array(best)
    return [
        TokenLogprob(token, value, _ranked(ids[i].tolist(), values[i].tolist(), tops[i]))
        for i, (token, value) in enumerate(zip(tokens, as_floats(chosen), strict=True))
    ]


def _ranked(ids: list[int], scores: list[float], count: int) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(zip(ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))[:count])
