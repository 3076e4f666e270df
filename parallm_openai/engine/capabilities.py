"""What a model family can do in a batch: found out by trying, not by a list of names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.kv import RaggedCache
from parallm_openai.engine.cache.native import NativeCache, NativePrefill
from parallm_openai.models.language_model import LanguageModel


class Batching(StrEnum):
    RAGGED = "ragged"
    NATIVE = "native"


class UnsupportedModelError(Exception):
    """Neither kind of batch cache serves the model correctly; the message gives the reason."""


@dataclass(frozen=True)
class Capabilities:
    """How a model is batched, whether it may speculate, and why.

    `mask_axes` is how the model wants its masks (`RaggedCache`), `token_bytes` what one token of
    context takes in the cache, 0 if that is not known.
    """

    batching: Batching
    speculation: bool
    reason: str
    mask_axes: int = 4
    token_bytes: int = 0


def probe(model: nn.Module, vocab_size: int) -> Capabilities:
    """Compare batched forwards with single-row ones on a few tokens.

    Raises UnsupportedModelError if neither kind of cache reproduces the single rows.
    """
    plain = all(isinstance(layer, (KVCache, RotatingKVCache)) for layer in make_prompt_cache(model))
    problem = "its cache is not plain keys and values"
    for axes in (4, 5) if plain else ():
        found = _disagreement(partial(_ragged_rounds, model, vocab_size, axes))
        if found is None:
            reason = "plain keys and values; verified against single rows"
            return Capabilities(Batching.RAGGED, True, reason, axes, _token_bytes(model))
        problem = f"in a ragged batch {found}"
        if not found.startswith(FAILS):
            break
    found = _disagreement(partial(_native_rounds, model, vocab_size))
    if found is None:
        return Capabilities(Batching.NATIVE, False, f"served by mlx-lm's batch caches, since {problem}")
    raise UnsupportedModelError(f"this model cannot be served in a batch: {problem}; in mlx-lm's batch caches {found}")


FAILS = "it fails"

# Logits in a batch and the same from single rows, position by position.
Comparison = list[tuple[mx.array, mx.array]]


def _disagreement(rounds: Callable[[], Comparison]) -> str | None:
    try:
        compared = rounds()
        pairs = [(np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32))) for a, b in compared]
    except Exception as error:
        return f"{FAILS} ({type(error).__name__}: {error})"
    tolerance = 1e-3 if compared[0][0].dtype == mx.float32 else 5e-2
    for batched, alone in pairs:
        scale = max(float(np.abs(alone).max()), 1e-6)
        difference = float(np.abs(batched - alone).max()) / scale
        if not difference < tolerance:
            return f"its logits differ from single rows by {difference:.2g} of their size"
    return None


def _tokens(vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[int(t) for t in rng.integers(0, min(vocab_size, 1000), length)] for length in (11, 4, 7)]


def _ragged_rounds(model: nn.Module, vocab_size: int, mask_axes: int) -> Comparison:
    """Three ragged rows: read some, read more with a tail that is rejected, and go on after it."""
    rows = _tokens(vocab_size)
    cache = RaggedCache(LanguageModel(model), mask_axes)
    for _ in rows:
        cache.append_row()
    single = [_alone(model, row) for row in rows]
    compared: Comparison = []
    done = [0] * len(rows)
    for widths, kept in (((5, 1, 3), (5, 1, 3)), ((4, 3, 2), (1, 2, 0)), ((3, 1, 4), (3, 1, 4))):
        chunks = [row[at : at + width] for row, at, width in zip(rows, done, widths, strict=True)]
        logits = cache.forward(Inputs.of(chunks), done)
        mx.eval(logits)
        expected = [single[i][at : at + len(chunk)] for i, (at, chunk) in enumerate(zip(done, chunks, strict=True))]
        compared.append((logits, mx.concatenate(expected)))
        done = [at + count for at, count in zip(done, kept, strict=True)]
    return compared


def _native_rounds(model: nn.Module, vocab_size: int) -> Comparison:
    """Rows that read their prompts alone, decode together, and lose one of them on the way."""
    rows = _tokens(vocab_size)
    single = [_alone(model, row) for row in rows]
    prefill, batch = NativePrefill(LanguageModel(model)), NativeCache(LanguageModel(model))
    for row in rows:
        prefill.append_row()
        prefill.forward(Inputs.of([row[:-2]]), [0])
        prefill.evaluate()
        batch.append_row_from(prefill, 0, len(row) - 2)
        prefill.remove_row(0, 0)
    lengths = [len(row) - 2 for row in rows]
    logits = batch.forward(Inputs.of([[row[-2]] for row in rows]), lengths)
    compared = [(logits[i], single[i][-2]) for i in range(len(rows))]
    batch.remove_row(0, lengths[-1] + 1)
    remaining = [2, 1]
    logits = batch.forward(Inputs.of([[rows[i][-1]] for i in remaining]), [lengths[i] + 1 for i in remaining])
    compared += [(logits[place], single[i][-1]) for place, i in enumerate(remaining)]
    return compared


def _alone(model: nn.Module, tokens: Sequence[int]) -> mx.array:
    """Logits `[len(tokens), vocab]` of one row read token by token, as plain decoding does."""
    cache = make_prompt_cache(model)
    logits = [model(mx.array([[token]]), cache=cache)[0, 0] for token in tokens]
    stacked = mx.stack(logits)
    mx.eval(stacked)
    return stacked


def _token_bytes(model: nn.Module) -> int:
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=cache))
    buffers = [buffer for layer in cache for buffer in (layer.keys, layer.values) if buffer is not None]
    return sum(buffer.shape[1] * buffer.shape[3] * buffer.itemsize for buffer in buffers)
