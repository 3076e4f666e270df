"""A model as the engine calls it: logits of the positions that somebody reads, and of no others.

The output projection is a large part of a small model's work: at 151,936 tokens and a hidden size of 896 it has 136 of
494 million weights. Prompts need it for their last token alone, and padding for none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from parallm_openai.models import mixers

PROJECTIONS = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)
# What a check of the projection reads, and the positions that it asks for.
CHECKED, ASKED = 5, (1, 4)
# Fewer rows may be multiplied by another kernel, which rounds otherwise.
TOLERANCE = 0.02

# Two engines may be built on one network at the same time.
_installing = threading.Lock()
# The positions to project, for the forward that this thread is in. Several engines may share a model.
_positions: ContextVar[mx.array | None] = ContextVar("positions", default=None)
# Where to put the hidden states that the projection gets, if somebody wants them.
_seen: ContextVar[list[mx.array] | None] = ContextVar("seen", default=None)


class Head(nn.Module):
    """What a model's output projection becomes: it projects only the positions asked for.

    It returns them as `[1, positions, vocab]`, so that what a model does to its logits afterwards still fits. It is a
    class put before the projection's own, not a module around it: names of parameters stay as they are.
    """

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(_asked_for(x))


class EmbeddingHead(nn.Module):
    """A `Head` that is the model's embedding as well."""

    def as_linear(self, x: mx.array) -> mx.array:
        return super().as_linear(_asked_for(x))  # type: ignore[misc]


def _asked_for(x: mx.array) -> mx.array:
    """The positions to project of hidden states `[rows, width, hidden]`."""
    positions, seen = _positions.get(), _seen.get()
    if seen is not None:
        seen.append(x)
    return x if positions is None else x.reshape(1, -1, x.shape[-1])[:, positions]


@contextmanager
def _only(positions: mx.array | None) -> Iterator[None]:
    token = _positions.set(positions)
    try:
        yield
    finally:
        _positions.reset(token)


@contextmanager
def hidden_states() -> Iterator[list[mx.array]]:
    """A list that gets the hidden states `[rows, width, hidden]` of each forward in the block.

    They are what the output projection reads, of all positions. The model must have a `Head`.
    """
    seen: list[mx.array] = []
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


class LanguageModel:
    """A network of mlx-lm's and how to get logits of some of its positions."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        with _installing:
            self.has_head = _install_head(network)
            mixers.install(network)

    def __call__(self, ids: mx.array, cache: Sequence[Any], positions: mx.array | None = None) -> mx.array:
        """Logits `[positions, vocab]` of `ids` `[rows, width]`; position i of row r has the number r * width + i.

        They are those of all positions if none are given, and not computed unless somebody evaluates them.
        """
        with _only(positions if self.has_head else None):
            logits: mx.array = self.network(ids, cache=cache)
        logits = logits.reshape(-1, logits.shape[-1])
        return logits if self.has_head or positions is None else logits[positions]

    def make_cache(self) -> list[Any]:
        """mlx-lm's own cache for one sequence."""
        return make_prompt_cache(self.network)


def _install_head(network: nn.Module) -> bool:
    """Put a `Head` in the place of the network's output projection, unless it has one.

    Returns False, and changes nothing, if no module can be replaced.
    """
    ids = mx.array([list(range(CHECKED))])
    expected = network(ids, cache=make_prompt_cache(network))
    asked = expected[0, list(ASKED)]
    # Ranks that share the network must come to its exchanges in one order, so no two forwards are evaluated at once.
    mx.eval(asked)
    if any(isinstance(module, (Head, EmbeddingHead)) for module in network.modules()):
        return _agrees(network, ids, asked)
    for module in network.modules():
        if isinstance(module, PROJECTIONS) and module.weight.shape[0] == expected.shape[-1]:
            own = type(module)
            module.__class__ = _head_of(own)  # type: ignore[assignment]
            if _agrees(network, ids, asked):
                return True
            module.__class__ = own
    return False


@cache
def _head_of(projection: type[nn.Module]) -> type[nn.Module]:
    kind = EmbeddingHead if hasattr(projection, "as_linear") else Head
    return type(kind.__name__ + projection.__name__, (kind, projection), {})


def _agrees(network: nn.Module, ids: mx.array, expected: mx.array) -> bool:
    """Whether the network gives just these logits if it is asked for some."""
    try:
        with _only(mx.array(ASKED)):
            found = network(ids, cache=make_prompt_cache(network))[0]
        if found.shape != expected.shape:
            return False
        difference, scale = mx.abs(found - expected).max(), mx.abs(expected).max()
        return bool((difference <= TOLERANCE * scale).item())
    except Exception:
        return False
