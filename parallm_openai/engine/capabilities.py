"""What a model family can do in a batch: found out by trying, not by a list of names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import ArraysCache, make_prompt_cache

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.native import NativeCache, NativePrefill
from parallm_openai.engine.cache.ragged import Ragged, RaggedCache
from parallm_openai.models.language_model import LanguageModel
from parallm_openai.models.mixers import KNOWN_LAYERS, States, leaves


class UnsupportedModelError(Exception):
    """Neither kind of batch cache serves the model correctly; the message gives the reason."""


@dataclass(frozen=True)
class Capabilities:
    """How a model is batched, and why.

    `ragged` says how a `RaggedCache` serves it: then rows may be padded and rolled back, so that the model can
    speculate. If it is None, mlx-lm's batch caches serve it. `token_bytes` is what one token of context takes in the
    cache, and `state_bytes` what a row's recurrent states take; 0 if that is not known or nothing.
    """

    ragged: Ragged | None
    reason: str
    token_bytes: int = 0
    state_bytes: int = 0

    @property
    def batching(self) -> str:
        return "native" if self.ragged is None else "ragged"


def probe(model: nn.Module, vocab_size: int) -> Capabilities:
    """Compare batched forwards with single-row ones on a few tokens.

    Raises UnsupportedModelError if neither kind of cache reproduces the single rows.
    """
    try:
        rows = [_Alone(model, tokens) for tokens in _tokens(vocab_size)]
    except Exception as error:
        raise UnsupportedModelError(f"this model cannot be served: {_described(error)}") from error
    problem = _misfit(make_prompt_cache(model))
    for ragged in _choices(model) if problem is None else ():
        found = _disagreement(partial(_ragged_rounds, model, ragged, rows))
        if found is None:
            kept = "keys, values and recurrent states" if ragged.recurrent else "keys and values"
            return Capabilities(ragged, f"{kept}; verified against single rows", *_row_bytes(model, ragged))
        problem = problem or f"in a ragged batch {found}"
    found = _disagreement(partial(_native_rounds, model, rows))
    if found is None:
        return Capabilities(None, f"served by mlx-lm's batch caches, since {problem}")
    raise UnsupportedModelError(f"this model cannot be served in a batch: {problem}; in mlx-lm's batch caches {found}")


Pair = tuple[mx.array, mx.array]


@dataclass(slots=True)
class Comparison:
    """Pairs that should be alike, from a batch and from single rows; and states, layer by layer, that must differ.

    If those did not, a wrong state would not be noticed either.
    """

    alike: list[Pair] = field(default_factory=list)
    unlike: list[list[Pair]] = field(default_factory=list)


def _misfit(caches: Sequence[Any]) -> str | None:
    unknown = {type(layer).__name__ for layer in leaves(caches) if not isinstance(layer, KNOWN_LAYERS)}
    return f"its cache is a {', '.join(sorted(unknown))}" if unknown else None


def _choices(model: nn.Module) -> Iterator[Ragged]:
    """The ways to serve a model by a ragged cache, the fastest first."""
    recurrent = any(isinstance(layer, ArraysCache) for layer in leaves(make_prompt_cache(model)))
    for axes in (4, 5):
        if recurrent:
            yield Ragged(axes, recurrent=True, masked=True)
        yield Ragged(axes, recurrent=recurrent)


def _disagreement(compare: Callable[[], Comparison]) -> str | None:
    try:
        compared = compare()
        tolerance = 1e-3 if compared.alike[0][0].dtype == mx.float32 else 5e-2
        # Unlike Python's own, NumPy's maximum of a NaN and anything is a NaN.
        difference = float(np.max([_distance(pair) for pair in compared.alike]))
        least = min((max(map(_distance, layer)) for layer in compared.unlike), default=1.0)
    except Exception as error:
        return f"it fails ({_described(error)})"
    if not math.isfinite(difference):
        return "its logits or states are not numbers"
    if not difference < tolerance:
        return f"its logits or states differ from single rows by {difference:.2g} of their size"
    if not least > tolerance:
        return "its states hardly depend on what it reads, so that a wrong one would not be noticed"
    return None


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _distance(pair: Pair) -> float:
    """The largest difference, as a part of the largest number."""
    found, expected = (np.array(array.astype(mx.float32)) for array in pair)
    return float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-6)


def _tokens(vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[int(t) for t in rng.integers(0, min(vocab_size, 1000), length)] for length in (11, 4, 7)]


# For each round: the tokens that three rows read, and how many of those they keep. One begins late.
ROUNDS = (((5, 0, 3), (5, 0, 3)), ((4, 3, 2), (1, 2, 0)), ((3, 2, 4), (3, 2, 4)))


def _ragged_rounds(model: nn.Module, ragged: Ragged, rows: Sequence[_Alone]) -> Comparison:
    """Three ragged rows: read some, read more with a tail that is rejected, and go on after it."""
    cache = ragged.cache(LanguageModel(model))
    for _ in rows:
        cache.append_row()
    compared = Comparison()
    done = [0] * len(rows)
    for widths, kept in ROUNDS:
        chunks = [row.tokens[at : at + width] for row, at, width in zip(rows, done, widths, strict=True)]
        logits = cache.forward(Inputs.of(chunks), done)
        mx.eval(logits)
        expected = [row.logits[at : at + len(chunk)] for row, at, chunk in zip(rows, done, chunks, strict=True)]
        compared.alike.append((logits, mx.concatenate(expected)))
        done = [at + count for at, count in zip(done, kept, strict=True)]
        if ragged.recurrent:
            compared.alike += _states_alike(cache, rows, done)
    if ragged.recurrent:
        # After what the first row kept of the second round, and after all that it read in it.
        (first, (width, *_)), kept_then = (ROUNDS[0][1][0], ROUNDS[1][0]), ROUNDS[1][1][0]
        compared.unlike = _states_unlike(rows[0], first + kept_then, first + width)
    return compared


def _states_alike(cache: RaggedCache, rows: Sequence[_Alone], lengths: Sequence[int]) -> list[Pair]:
    assert cache.states is not None
    return [
        pair
        for slot, (row, length) in enumerate(zip(rows, lengths, strict=True))
        if length
        for layer in zip(cache.states.of(slot, length), row.states[length], strict=True)
        for pair in _pairs(*layer)
    ]


def _states_unlike(row: _Alone, length: int, other: int) -> list[list[Pair]]:
    return [_pairs(*layers) for layers in zip(row.states[length], row.states[other], strict=True)]


def _pairs(arrays: Sequence[mx.array | None], others: Sequence[mx.array | None]) -> list[Pair]:
    return [(a, b) for a, b in zip(arrays, others, strict=True) if a is not None and b is not None]


def _native_rounds(model: nn.Module, rows: Sequence[_Alone]) -> Comparison:
    """Rows that read their prompts alone, decode together, and lose one of them on the way."""
    prefill, batch = NativePrefill(LanguageModel(model)), NativeCache(LanguageModel(model))
    for row in rows:
        prefill.append_row()
        prefill.forward(Inputs.of([row.tokens[:-2]]), [0])
        prefill.evaluate()
        batch.append_row_from(prefill, 0, len(row.tokens) - 2)
        prefill.remove_row(0, 0)
    lengths = [len(row.tokens) - 2 for row in rows]
    logits = batch.forward(Inputs.of([[row.tokens[-2]] for row in rows]), lengths)
    mx.eval(logits)
    compared = Comparison([(logits[place], row.logits[-2]) for place, row in enumerate(rows)])
    batch.remove_row(0, lengths[-1] + 1)
    remaining = [2, 1]
    ends = [[rows[place].tokens[-1]] for place in remaining]
    logits = batch.forward(Inputs.of(ends), [lengths[place] + 1 for place in remaining])
    compared.alike += [(logits[at], rows[place].logits[-1]) for at, place in enumerate(remaining)]
    return compared


class _Alone:
    """One row read token by token, as plain decoding does: logits `[tokens, vocab]`, and states after each token."""

    def __init__(self, model: nn.Module, tokens: list[int]) -> None:
        self.tokens = tokens
        cache = make_prompt_cache(model)
        recurrent = [layer for layer in leaves(cache) if isinstance(layer, ArraysCache)]
        self.states: list[States] = [[]]
        logits: list[mx.array] = []
        for token in tokens:
            logits.append(model(mx.array([[token]]), cache=cache)[0, 0])
            # Ranks that share the model must come to its exchanges in one order: one forward at a time.
            mx.eval(logits[-1])
            self.states.append([list(layer.cache) for layer in recurrent])
        self.logits = mx.stack(logits)
        mx.eval(self.logits, self.states)


def _row_bytes(model: nn.Module, ragged: Ragged) -> tuple[int, int]:
    cache = ragged.cache(LanguageModel(model))
    cache.append_row()
    mx.eval(cache.forward(Inputs.of([[0]]), [0]))
    return cache.token_bytes, 0 if cache.states is None else cache.states.nbytes
