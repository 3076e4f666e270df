"""Made models agree as often as asked for, are as certain as asked for, and have every token of their vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load as load_with_mlx_lm
from support.tiny import greedy, reference, run_all

from parallm_openai.bench.make_model import SPECIAL, TOLERANCE, PairFigures, make_pair, make_tokenizer
from parallm_openai.bench.shape import PairShape
from parallm_openai.bench.words import lexicon, words
from parallm_openai.engine.build import build_core
from parallm_openai.models.loading import load
from parallm_openai.settings import EngineConfig

TINY = PairShape(hidden=64, layers=4, ffn=128, heads=4, vocab=512, draft_layers=1)


def top_probability(model: nn.Module, tokens: list[int]) -> float:
    """The mean probability of the likeliest token after each of the tokens."""
    probabilities = mx.softmax(model(mx.array([tokens])), axis=-1)
    return float(mx.mean(mx.max(probabilities, axis=-1)))


@dataclass(frozen=True)
class Pair:
    folder: Path
    figures: PairFigures


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(folder, make_pair(folder, TINY))


@pytest.mark.slow
def test_a_made_pair_is_as_asked_for(pair: Pair) -> None:
    target, tokenizer = load_with_mlx_lm(str(pair.folder / "target"))
    draft, _ = load_with_mlx_lm(str(pair.folder / "draft"))
    assert abs(pair.figures.agreement - TINY.agreement) <= 2 * TOLERANCE
    assert (len(target.layers), len(draft.layers)) == (4, 1)
    assert len(tokenizer) == 512
    assert tokenizer.decode(tokenizer.encode("Zoë 日本 🙂")) == "Zoë 日本 🙂"
    # A certainty that is right on the text that it was tuned on is about right on any.
    assert abs(pair.figures.top_probability - TINY.sharpness) < 0.01
    assert abs(top_probability(target, tokenizer.encode(" ".join(words(3, 200)))) - TINY.sharpness) < 0.1


@pytest.mark.slow
def test_a_hybrid_pair_is_as_asked_for_too(tmp_path: Path) -> None:
    shape = PairShape(**{**TINY.__dict__, "family": "qwen3_next", "draft_layers": 2})
    figures = make_pair(tmp_path, shape)
    assert abs(figures.agreement - TINY.agreement) <= 2 * TOLERANCE
    target, draft = (load(tmp_path / name) for name in ("target", "draft"))
    core = build_core(target, EngineConfig(draft_length=3), draft)
    assert core.scheduler.recurrent
    wanted = [greedy([5, 6, 7], 20, ignore_eos=True), greedy(list(range(9, 40)), 20, ignore_eos=True)]
    run = run_all(core, wanted)
    for request in wanted:
        assert run.tokens[request.id] == reference(request, target=target.model)
    assert sum(map(run.accepted, wanted)) > 20


@pytest.mark.slow
def test_agreement_and_certainty_are_asked_for_apart(tmp_path: Path, pair: Pair) -> None:
    other = make_pair(tmp_path, PairShape(**{**TINY.__dict__, "agreement": 0.5, "sharpness": 0.8}))
    assert abs(other.agreement - 0.5) <= 2 * TOLERANCE
    assert abs(other.top_probability - 0.8) < 0.01
    assert other.overlap < pair.figures.overlap


@pytest.mark.slow
def test_a_hostile_draft_never_agrees(tmp_path: Path) -> None:
    hostile = make_pair(tmp_path, PairShape(**{**TINY.__dict__, "agreement": 0.0}))
    assert hostile.agreement < 0.05
    assert hostile.overlap < 0.2


@pytest.mark.slow
def test_the_same_seed_makes_the_same_pair(tmp_path: Path, pair: Pair) -> None:
    make_pair(tmp_path, TINY)
    files = [folder / "target" / "model.safetensors" for folder in (tmp_path, pair.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_half_precision_is_written_as_asked_of_the_same_pair(tmp_path: Path, pair: Pair) -> None:
    assert make_pair(tmp_path, PairShape(**{**TINY.__dict__, "dtype": "bfloat16"})) == pair.figures
    halves, wholes = (
        dict(tree_flatten(load_with_mlx_lm(str(folder / "target"))[0].parameters()))
        for folder in (tmp_path, pair.folder)
    )
    assert {array.dtype for array in halves.values()} == {mx.bfloat16}
    assert all(mx.array_equal(halves[name], wholes[name].astype(mx.bfloat16)) for name in wholes)


@pytest.mark.parametrize("change", [{"hidden": 30}, {"draft_layers": 4}, {"draft_layers": 0}, {"vocab": 100}])
def test_impossible_shapes_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"hidden|draft|vocab"):
        make_pair(tmp_path, PairShape(**{**TINY.__dict__, **change}))


@pytest.mark.parametrize("size", [512, 20_000])
def test_every_entry_of_the_vocabulary_is_one_that_texts_have(size: int) -> None:
    tokenizer = make_tokenizer(size)
    assert tokenizer.get_vocab_size() == size
    # No text holds a special token, nor a byte that UTF-8 has only in the middle of a character.
    learnt = range(len(SPECIAL) + 256, size)
    assert [token for token in learnt if tokenizer.encode(tokenizer.decode([token])).ids != [token]] == []


def test_a_lexicon_has_no_word_twice() -> None:
    assert len(set(lexicon(1, 20_000))) == 20_000
    assert lexicon(1, 10) == lexicon(1, 20_000)[:10] != lexicon(2, 10)
