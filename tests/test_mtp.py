"""Heads for multi-token prediction: read from checkpoints, run by the book, and never part of the output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import mtp_heads, tiny
from support.kinds import KINDS
from support.mtp_heads import Weights, hidden_states, parts
from support.tiny import Run, greedy, reference, run_all, seeded

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.build import build_core
from parallm_openai.engine.row import DRAFT, Row
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.engine.speculation.hidden_states import KEPT
from parallm_openai.engine.speculation.mtp import MTPHead
from parallm_openai.models.language_model import LanguageModel
from parallm_openai.models.loading import LoadedModel, ModelLoadError, load
from parallm_openai.models.mtp import fed, load_head
from parallm_openai.settings import Acceptance, EngineConfig

FAMILIES = sorted(mtp_heads.NAMES)
QWEN = [family for family in FAMILIES if family.startswith("qwen")]

pytestmark = pytest.mark.usefixtures("no_step_fails")


def loaded(folder: Path) -> LoadedModel:
    model = load(folder)
    assert LanguageModel(model.model).has_head
    return model


def distance(found: mx.array, expected: mx.array) -> float:
    return float(np.array(mx.abs(found - expected).max() / mx.abs(expected).max()))


def assert_by_the_book(model: LoadedModel, family: str) -> None:
    head = load_head(model)
    assert head is not None
    ids = mx.array([[5, 9, 2, 77, 30, 41, 8]])
    hidden = hidden_states(model.model, ids)
    expected, _ = parts(family).logits(model.model, ids[:, 1:], hidden[:, :-1])
    network = LanguageModel(head)
    with fed(hidden[:, :-1]):
        found = network(ids[:, 1:], network.make_cache())
    assert distance(found, expected[0]) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_computes_what_its_family_would(family: str, tmp_path: Path) -> None:
    assert_by_the_book(loaded(mtp_heads.write(family, tmp_path)), family)


@pytest.mark.parametrize("family", QWEN)
def test_so_it_does_from_a_checkpoint_as_its_makers_publish_it(family: str, tmp_path: Path) -> None:
    model = loaded(mtp_heads.write(family, tmp_path, as_published=True))
    expected = mtp_heads.target(family)(mx.array([[5, 9, 2]]))
    assert distance(model.model(mx.array([[5, 9, 2]])), expected) < 1e-4
    assert_by_the_book(model, family)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_conversion_may_have_changed_the_models_norms_alone_or_some_of_the_heads(family: str, tmp_path: Path) -> None:
    def differences(weights: Weights) -> Weights:
        return {name: own - 1 if "norm" in name and own.ndim == 1 else own for name, own in weights.items()}

    def mixed(weights: Weights) -> Weights:
        return weights | differences({name: own for name, own in weights.items() if "layers" in name})

    assert_by_the_book(loaded(mtp_heads.write(family, tmp_path / "all", head=differences)), family)
    assert_by_the_book(loaded(mtp_heads.write(family, tmp_path / "some", head=mixed)), family)


def test_a_conversion_may_have_put_the_path_of_the_text_part_first(tmp_path: Path) -> None:
    def moved(weights: Weights) -> Weights:
        return {f"language_model.{name}": own for name, own in weights.items()}

    assert_by_the_book(loaded(mtp_heads.write("qwen3_5", tmp_path, head=moved)), "qwen3_5")


def test_a_quantised_head_computes_nearly_what_it_did(tmp_path: Path) -> None:
    def quantised(weights: Weights) -> Weights:
        found: Weights = {}
        for name, own in weights.items():
            if own.ndim == 2 and own.shape[-1] % 32 == 0:
                packed, scales, biases = mx.quantize(own, group_size=32, bits=8)
                base = name.removesuffix(".weight")
                found |= {name: packed, f"{base}.scales": scales, f"{base}.biases": biases}
            else:
                found[name] = own
        assert len(found) > len(weights)
        return found

    model = loaded(mtp_heads.write("qwen3_5", tmp_path, head=quantised))
    head = load_head(model)
    assert head is not None
    ids, hidden = mx.array([[5, 9, 2]]), mx.ones((1, 3, 32))
    expected, _ = parts("qwen3_5").logits(model.model, ids, hidden)
    network = LanguageModel(head)
    with fed(hidden):
        assert distance(network(ids, network.make_cache()), expected[0]) < 0.05


class Watched(MTPHead):
    """Notes what it drafts, and after which tokens."""

    def __init__(self, head: nn.Module, vocab_size: int) -> None:
        super().__init__(head, vocab_size)
        self.seen: list[tuple[list[int], tuple[int, ...]]] = []

    def propose(
        self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance, copied: Sequence[bool] = ()
    ) -> Drafts:
        drafts = super().propose(batch, lengths, acceptance, copied)
        self.seen += [(list(row.tokens), own) for row, own in zip(batch.rows, drafts.tokens, strict=True) if own]
        return drafts


def drafted_by_the_book(family: str, target: nn.Module, tokens: Sequence[int], count: int) -> list[int]:
    """What a chained head drafts: it reads the text from its beginning for every token."""
    ids, drafted = list(tokens[1:]), []
    hidden = hidden_states(target, mx.array([tokens]))[:, :-1]
    for _ in range(count):
        logits, own = parts(family).logits(target, mx.array([ids]), hidden)
        drafted.append(int(np.array(mx.argmax(logits[0, -1]))))
        ids.append(drafted[-1])
        hidden = mx.concatenate([hidden, own[:, -1:]], axis=1)
    return drafted


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5", "glm4_moe"])
def test_every_draft_of_a_batch_is_that_of_a_head_which_reads_the_whole_text(family: str, tmp_path: Path) -> None:
    model = loaded(mtp_heads.write(family, tmp_path))
    core = build_core(model, EngineConfig(draft_length=3, prefill_chunk=8), "mtp")
    head = load_head(model)
    assert head is not None
    watched = Watched(head, model.vocab_size)
    core.drafter = core.scheduler.drafter = watched
    core.scheduler.common.prefilling.clear()
    core.scheduler.common.decoding.clear()
    requests = [greedy([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], 12), greedy([7], 12), greedy([2, 71, 82], 12)]
    run = run_all(core, requests, [0, 1, 4])
    for request in requests:
        assert run.tokens[request.id] == reference(request, eos=[1], target=model.model)
    assert len(watched.seen) > 20
    for tokens, drafted in watched.seen:
        assert list(drafted) == drafted_by_the_book(family, model.model, tokens, len(drafted)), tokens


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_rows_that_lack_hidden_states_are_drafted_for_all_the_same(kind: str) -> None:
    """Prompts that were stored, or not read along, and long stretches without drafts."""
    run = Run(KINDS[kind].core("MTP head", draft_length=2, prefill_chunk=16))
    prompt = [n * n % tiny.VOCAB for n in range(50)]
    for number in range(3):
        for config in (EngineConfig(draft_length=2), EngineConfig(draft_length=0)):
            run.core.config = config
            request = greedy([*prompt, number], KEPT + 20)
            run.add(request)
            run.finish()
            assert run.tokens[request.id] == reference(request, target=KINDS[kind].model)
    run.core.config = EngineConfig(draft_length=0)
    request = seeded(prompt, 2 * KEPT, seed=4)
    run.add(request)
    for step in range(200):
        if step == KEPT + 20:
            run.core.config = EngineConfig(draft_length=3)
        run.step()
        for row in run.core.rows.values():
            assert held(row) <= KEPT + len(prompt)
    assert run.tokens[request.id] == reference(request, target=KINDS[kind].model)
    assert run.drafted(request) > 0


def test_rows_come_back_to_drafts_from_steps_that_ran_ahead() -> None:
    core = KINDS["linear attention"].core("MTP head", draft_length=0, runs_ahead=True)
    requests = [greedy([1, 2, 3], 60), seeded([4, 5], 60, seed=1)]
    run = Run(core)
    for request in requests:
        run.add(request)
    for step in range(60):
        core.config = EngineConfig(draft_length=2 if step % 12 > 8 else 0)
        run.step()
    run.finish()
    for request in requests:
        assert run.tokens[request.id] == reference(request, target=KINDS["linear attention"].model)
        assert run.drafted(request) > 4


def held(row: Row) -> int:
    return sum(piece.count for piece in row.hidden.pieces)


def test_a_drafted_token_is_never_committed_to_the_heads_cache() -> None:
    core = KINDS["dense"].core("MTP head", draft_length=4)
    run = Run(core)
    run.add(greedy([1, 2, 3], 40))
    while not core.idle:
        run.step()
        for row in core.rows.values():
            assert row.computed[DRAFT].end <= len(row.tokens) - 1


def without_head(folder: Path, family: str) -> Path:
    return mtp_heads.write(family, folder, head=lambda weights: {})


def test_a_checkpoint_that_has_lost_its_head_is_served_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(without_head(tmp_path, "qwen3_5"))
    with caplog.at_level(logging.INFO):
        core = build_core(model, EngineConfig(), "auto")
    assert core.drafter.name == "suffix"
    assert "was made with a head for multi-token prediction, which would draft for it" in caplog.text
    with pytest.raises(ModelLoadError, match="has no head for multi-token prediction that could draft"):
        build_core(model, EngineConfig(), "mtp")


def changed(name: str, array: Callable[[mx.array], mx.array]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: array(weights.get(name, mx.zeros(1)))}


PROJECTION = "mtp.layers.0.self_attn.o_proj"
# What is wrong with a head, and what the log says.
BROKEN: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "an array is missing": (
        lambda weights: {name: own for name, own in weights.items() if not name.endswith("q_proj.weight")},
        "q_proj.weight is missing",
    ),
    "an array has another size": (changed("mtp.fc.weight", lambda own: own[:, :16]), "cannot be read"),
    "an array is not a number": (changed("mtp.norm.weight", lambda own: own * float("nan")), "are not numbers"),
    "an array is infinite": (changed("mtp.fc.weight", lambda own: own * float("inf")), "are not numbers"),
    "weights are whole numbers": (changed("mtp.fc.weight", lambda own: own.astype(mx.uint8)), "whole numbers"),
    "there are more scales than weights": (changed(f"{PROJECTION}.scales", lambda _: mx.ones((32, 500))), "do not fit"),
    "there are no scales": (changed(f"{PROJECTION}.scales", lambda _: mx.ones((32, 0))), "do not fit"),
    "scales have no axes": (changed(f"{PROJECTION}.scales", lambda _: mx.array(1.0)), "do not fit"),
    "scales are there for weights that are not packed": (
        changed(f"{PROJECTION}.scales", lambda _: mx.ones((32, 1))),
        "do not fit",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_head_is_left_alone_with_a_word_in_the_log(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, said = BROKEN[fault]
    core = build_core(load(mtp_heads.write("qwen3_5", tmp_path, head=change)), EngineConfig(), "auto")
    assert core.drafter.name == "suffix"
    assert said in caplog.text


@pytest.mark.parametrize("extra", ["layers.0.self_attn.gate.weight", "layers.0.pre_feedforward_layernorm.weight"])
def test_an_array_that_no_head_has_is_ignored(extra: str, tmp_path: Path) -> None:
    change = changed(f"mtp.{extra}", lambda _: mx.ones((8,)))
    assert_by_the_book(loaded(mtp_heads.write("qwen3_5", tmp_path, head=change)), "qwen3_5")


def test_a_file_that_has_gone_bad_since_leaves_the_model_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(mtp_heads.write("qwen3_5", tmp_path))
    (tmp_path / "model-mtp.safetensors").write_bytes(b"no such file")
    assert build_core(model, EngineConfig(), "auto").drafter.name == "suffix"
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe"])
def test_a_head_drafts_without_being_asked_for(family: str, tmp_path: Path) -> None:
    model = load(mtp_heads.write(family, tmp_path))
    core = build_core(model, EngineConfig(draft_length=3), "auto")
    assert core.drafter.name == "mtp+suffix"
    requests = [
        seeded([3, 1, 4], 30, seed=2, temperature=1.5, ignore_eos=True),
        greedy([1, 5, 9, 2], 30, ignore_eos=True),
    ]
    run = run_all(core, requests)
    for request in requests:
        assert run.tokens[request.id] == reference(request, eos=[1], target=model.model)
    assert all(map(run.drafted, requests))
