"""Logits are computed for the positions asked for, and are those of a forward that computes them all."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from support import families, tiny

from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.ragged import RaggedCache
from parallm_openai.models.language_model import LanguageModel

IDS = mx.array([[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]])


def everywhere(network: nn.Module) -> np.ndarray:
    logits = network(IDS, cache=make_prompt_cache(network))
    return np.array(logits.reshape(-1, logits.shape[-1]))


def names(network: nn.Module) -> list[str]:
    return list(dict(tree_flatten(network.parameters())))


@pytest.mark.parametrize("family", [*families.RAGGED, *families.RECURRENT])
def test_logits_of_some_positions_are_those_of_all(family: str) -> None:
    network = families.model(family)
    expected = everywhere(network)
    model = LanguageModel(network)
    assert model.has_head
    for positions in ([11], [0, 5, 6], []):
        found = model(IDS, model.make_cache(), mx.array(positions, dtype=mx.int32))
        np.testing.assert_allclose(np.array(found), expected[positions], atol=2e-4)
    np.testing.assert_allclose(np.array(model(IDS, model.make_cache())), expected, atol=2e-4)


class Counted(nn.Linear):
    """Counts the positions that it projects."""

    projected = 0

    def __call__(self, x: mx.array) -> mx.array:
        Counted.projected += x.shape[0] * x.shape[1]
        return super().__call__(x)


def with_head(head: nn.Module) -> nn.Module:
    # One that no other test shares.
    network = tiny.model(seed=71)
    network.update_modules({"lm_head": head})
    return network


def test_no_other_position_is_projected() -> None:
    model = LanguageModel(with_head(Counted(tiny.model().lm_head.weight.shape[1], tiny.VOCAB, bias=False)))
    Counted.projected = 0
    model(IDS, model.make_cache(), mx.array([2, 11]))
    assert Counted.projected == 2


def test_one_network_gets_one_head_however_many_engines_share_it() -> None:
    network = tiny.model()
    first, second = LanguageModel(network), LanguageModel(network)
    assert first.has_head
    assert second.has_head
    assert [name for name in names(network) if "lm_head" in name] == ["lm_head.weight"]


def test_a_thread_does_not_see_what_another_asks_for() -> None:
    model = LanguageModel(tiny.model())
    shapes: list[tuple[int, ...]] = []

    class Nested:
        """A cache that has another thread run the same model in the middle of this forward."""

        def __init__(self) -> None:
            thread = threading.Thread(target=lambda: shapes.append(model(IDS, model.make_cache()).shape))
            thread.start()
            thread.join()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.inner = model.network
            self.layers = model.network.layers

        def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
            Nested()
            return self.inner(ids, cache=cache)

    outer = LanguageModel(Network())
    assert outer(IDS, model.make_cache(), mx.array([1, 2])).shape == (2, tiny.VOCAB)
    assert shapes[-1] == (12, tiny.VOCAB)


class Unlike(nn.Module):
    """A network whose output does not come from a projection that could be asked for less."""

    def __init__(self, *, fresh: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = tiny.model(seed=72) if fresh else tiny.model()
        self.layers = self.inner.layers

    def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
        logits: mx.array = self.inner(ids, cache=cache)
        # It mixes positions after the projection.
        return logits + logits.sum(axis=1, keepdims=True)


def test_a_head_that_is_there_is_used_only_if_the_whole_network_agrees() -> None:
    assert LanguageModel(tiny.model()).has_head
    assert not LanguageModel(Unlike()).has_head


def test_a_network_that_needs_all_its_logits_computes_them_all_and_is_left_as_it_was() -> None:
    network = Unlike(fresh=True)
    before = names(network)
    expected = everywhere(network)
    model = LanguageModel(network)
    assert not model.has_head
    assert names(network) == before
    np.testing.assert_allclose(np.array(model(IDS, model.make_cache(), mx.array([3, 7]))), expected[[3, 7]], atol=2e-4)


class Other(nn.Module):
    """A projection of a kind that is not known."""

    def __init__(self, weight: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight = weight

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight.T


@pytest.mark.parametrize("prefill_chunk", [7, 100])
def test_without_a_head_no_logits_are_computed_but_for_a_prompts_last_token(
    monkeypatch: pytest.MonkeyPatch, prefill_chunk: int
) -> None:
    network = tiny.model(seed=73)
    network.update_modules({"lm_head": Other(network.lm_head.weight)})
    forwards: list[Inputs] = []
    forward = RaggedCache.forward

    def noting(cache: RaggedCache, inputs: Inputs, *lengths: Sequence[int]) -> mx.array:
        forwards.append(inputs)
        return forward(cache, inputs, *lengths)

    monkeypatch.setattr(RaggedCache, "forward", noting)
    requests = [tiny.greedy([n] * (9 * n + 1), 6) for n in range(5)] + [tiny.greedy([7] * 20, 4, prompt_logprobs=1)]
    engine = tiny.core(target=network, prefill_chunk=prefill_chunk)
    assert not engine.target.model.has_head
    run = tiny.run_all(engine, requests)
    for request in requests:
        assert run.tokens[request.id] == tiny.reference(request, target=network)
    for inputs in forwards:
        assert not any(inputs.wanted) or inputs.width == max(inputs.wanted)
