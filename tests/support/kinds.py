"""A tiny model of each kind that the engine serves, and who drafts for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.mtp import MTPHead
from parallm_openai.engine.speculation.portfolio import Portfolio
from parallm_openai.engine.speculation.suffix import SuffixDrafter
from parallm_openai.engine.step import EngineCore
from support import families, tiny
from support.mtp_heads import random_head


@dataclass(frozen=True)
class Kind:
    """A family of the tests, and how a ragged cache serves it.

    Those chosen here round alike alone and in a batch; others would draw near ties of a random model differently.
    """

    family: str
    ragged: Ragged

    @property
    def model(self) -> nn.Module:
        return _model(self.family)

    def draft_model(self, noise: float, **options: Any) -> DraftModel:
        """One of the same kind: with a noise of 0 it always agrees, with 1 hardly ever."""
        return DraftModel(_draft(self.family, noise), tiny.VOCAB, tiny.VOCAB, self.ragged, **options)

    def mtp_head(self, **options: Any) -> MTPHead:
        return MTPHead(_head(self.family), tiny.VOCAB, **options)

    def core(self, drafter: str = "none", **options: Any) -> EngineCore:
        return tiny.core(lambda: DRAFTERS[drafter](self), target=self.model, ragged=self.ragged, **options)


KINDS = {
    "dense": Kind("llama", Ragged()),
    "linear attention": Kind("qwen3_next", Ragged(recurrent=True, masked=True)),
    "linear attention, in groups": Kind("olmo_hybrid", Ragged(recurrent=True)),
    "short convolution": Kind("lfm2", Ragged(recurrent=True, masked=True)),
    "state space": Kind("jamba", Ragged(recurrent=True)),
    "recurrent": Kind("rwkv7", Ragged(recurrent=True)),
}

DRAFTERS: dict[str, Callable[[Kind], Drafter]] = {
    "none": lambda kind: Drafter(),
    "perfect draft": lambda kind: kind.draft_model(0.0),
    "fair draft": lambda kind: kind.draft_model(0.1),
    "fair draft, not waited for": lambda kind: kind.draft_model(0.1, asynchronous=True),
    "hostile draft": lambda kind: kind.draft_model(3.0),
    "dense draft": lambda kind: KINDS["dense"].draft_model(0.1),
    "MTP head": lambda kind: kind.mtp_head(),
    "suffix": lambda kind: SuffixDrafter(),
    "fair draft and suffix": lambda kind: Portfolio(kind.draft_model(0.1), SuffixDrafter()),
    "both, not waited for": lambda kind: Portfolio(kind.draft_model(0.1, asynchronous=True), SuffixDrafter()),
    "MTP head and suffix, not waited for": lambda kind: Portfolio(kind.mtp_head(asynchronous=True), SuffixDrafter()),
}


@cache
def _model(family: str) -> nn.Module:
    return _built(family)


def _built(family: str) -> nn.Module:
    return families.build({**families.config(family), "vocab_size": tiny.VOCAB}, seed=3)


@cache
def _head(family: str) -> nn.Module:
    return random_head(_model(family))


@cache
def _draft(family: str, noise: float) -> nn.Module:
    return disturbed(_built(family), noise)


def disturbed(model: nn.Module, noise: float) -> nn.Module:
    """The model with noise on its weights."""

    def _disturbed(weight: mx.array) -> mx.array:
        if weight.ndim < 2 or not mx.issubdtype(weight.dtype, mx.floating):
            return weight
        return weight + noise * mx.std(weight) * mx.random.normal(weight.shape)

    mx.random.seed(7)
    model.update(tree_map(_disturbed, model.parameters()))
    mx.eval(model.parameters())
    return model
