"""Loading folders and hub ids: what comes out, in which types, and what is said where it cannot be done."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from mlx.utils import tree_map_with_path
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import quantize_model, save_config
from support import families, hub

from parallm_openai.models import finding, loading
from parallm_openai.models.loading import FALLBACK_CONTEXT, ModelLoadError, check_same_tokenizer, load
from parallm_openai.models.weights import on_plain_cpu

PROMPT = [[5, 9, 70, 33, 12]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama in float16, with a tokenizer."""
    return families.write("llama", tmp_path / "tiny-llama")


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def logits(network: nn.Module) -> np.ndarray:
    return np.array(network(mx.array(PROMPT)).astype(mx.float32))


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    return float(np.abs(logits(one) - logits(other)).max())


def relative_difference(one: nn.Module, other: nn.Module) -> float:
    return float(np.linalg.norm(logits(one) - logits(other)) / np.linalg.norm(logits(other)))


# What comes out


def test_a_folder_becomes_a_model_with_what_a_server_needs(folder: Path) -> None:
    model = load(folder)
    assert model.name == "tiny-llama"
    assert model.path == folder
    assert model.context_length == 512
    assert model.vocab_size == families.VOCAB
    assert model.eos_token_ids == {1}
    assert model.config["model_type"] == "llama"
    assert model.tokenizer.decode(model.tokenizer.encode("(a) & b")) == "(a) & b"
    assert load(str(folder), name="another").name == "another"


@pytest.mark.slow
@pytest.mark.skipif(not on_plain_cpu(), reason="elsewhere the checkpoint's own types are kept")
@pytest.mark.parametrize("family", [*families.RAGGED, *families.RECURRENT])
def test_every_family_loads_from_half_precision_as_float32(family: str, tmp_path: Path) -> None:
    exact = families.write(family, tmp_path / "float32", dtype=mx.float32)
    halved = families.write(family, tmp_path / "float16")
    model = load(exact)
    assert largest_difference(model.model, families.model(family)) < 1e-4
    model = load(halved)
    assert model.dtype == mx.float32
    assert relative_difference(model.model, families.model(family)) < 0.05


@pytest.mark.skipif(not on_plain_cpu(), reason="elsewhere quantised models stay so")
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_quantised_folder_is_dequantised_to_float32(family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
    config = {**families.config(family), **sizes}
    quantised, settings = quantize_model(families.build(config), config, group_size=64, bits=8)
    folder = families.write(family, tmp_path / "quantised", built=quantised)
    save_config({**settings, "eos_token_id": 1}, folder / "config.json")
    model = load(folder)
    assert model.dtype == mx.float32
    assert not any("scales" in name for name in families.arrays(model.model))
    assert relative_difference(model.model, quantised) < 0.05


def test_an_adapter_is_applied(folder: Path, tmp_path: Path) -> None:
    plain = load(folder).model
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"num_layers": 2, "lora_parameters": {"rank": 4, "scale": 8.0, "dropout": 0.0}}
    tuned = load(folder).model
    linear_to_lora_layers(tuned, settings["num_layers"], settings["lora_parameters"])
    tuned.update(
        tree_map_with_path(
            lambda name, array: 0.3 * mx.random.normal(array.shape) if "lora_b" in name else array,
            tuned.parameters(),
        )
    )
    tuned.eval()
    weights = {name: array for name, array in families.arrays(tuned).items() if "lora_" in name}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    adapted = load(folder, adapter_path=adapter).model
    assert largest_difference(adapted, tuned) < 1e-4
    assert largest_difference(adapted, plain) > 0.1
    if on_plain_cpu():
        assert not any("lora" in name for name in families.arrays(adapted)), "it is fused"


@pytest.mark.parametrize("family", ["llama_long_rope", "gpt_oss", "deepseek_v2", "phimoe", "falcon_h1"])
def test_what_one_thread_has_loaded_another_can_run(family: str, tmp_path: Path) -> None:
    model = load(families.write(family, tmp_path / "model")).model
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(logits(model))
        except Exception as error:
            found.append(error)
        mx.clear_streams()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert isinstance(found[0], np.ndarray), found[0]


# The context's length


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"n_positions": 2048}, 2048),
        ({"max_seq_len": 4096}, 4096),
        ({}, FALLBACK_CONTEXT),
        ({"max_position_embeddings": None}, FALLBACK_CONTEXT),
        # A vision model's text part.
        ({"max_position_embeddings": 77, "text_config": {"max_position_embeddings": 32768}}, 32768),
        ({"text_config": None, "n_ctx": 1024}, 1024),
        # Qwen's YaRN: the config states the original length. Llama 3.1: it states the scaled one.
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                    "rope_type": "llama3",
                },
            },
            131072,
        ),
        ({"max_position_embeddings": 16384, "rope_scaling": {"factor": 4.0, "type": "linear"}}, 16384),
    ],
)
def test_the_contexts_length_is_read_from_the_config(config: dict[str, Any], length: int) -> None:
    assert loading.context_length(config) == length


# What cannot be loaded


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def broken(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def with_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("config.json"), "no config.json"),
        (broken("config.json"), "cannot be read as JSON"),
        (without("model.safetensors"), "no model*.safetensors"),
        (broken("model.safetensors"), "cannot be loaded"),
        (without("tokenizer.json"), "no tokenizer"),
        (broken("tokenizer.json"), "the tokenizer of"),
        (with_config(model_type="nosuch"), "Model type nosuch not supported"),
        (with_config(model_type=None), "names no model_type"),
        (with_config(hidden_size=48), "cannot be loaded"),
        (with_config(num_hidden_layers=3), "Missing"),
        (with_config(model_file="model.py"), "trust_remote_code"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder)
    with pytest.raises(ModelLoadError) as refusal:
        load(folder)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nosuch", "~/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelLoadError, match="there is no model folder"):
        load(path)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file"):
        load(folder / "config.json")


def test_a_missing_adapter_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"the adapter .* has no adapter_config.json"):
        load(folder, adapter_path=tmp_path)


# The hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that cannot be reached."""
    return hub.use_cache(tmp_path / "hub", monkeypatch)


def test_a_cached_hub_model_loads_without_the_hub(folder: Path, hub_cache: Path) -> None:
    hub.put_into_cache(folder, hub_cache, "someone/tiny")
    model = load("someone/tiny")
    assert model.name == "someone/tiny"
    assert model.path.is_relative_to(hub_cache)


def test_without_hub_and_cache_the_sentence_says_so(hub_cache: Path) -> None:
    with pytest.raises(ModelLoadError, match="not in the hub's local cache, and it could not be downloaded"):
        load("someone/nosuch")
    with pytest.raises(ModelLoadError, match=r"a hub id is owner/name, and the models with names are .*smollm2"):
        load("smolm2")


def test_an_unreachable_hub_is_logged_when_the_cache_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(*_: Any, local_files_only: bool, **__: Any) -> str:
        if local_files_only:
            return str(folder)
        raise LocalEntryNotFoundError("Got: ConnectError")

    monkeypatch.setattr(finding, "snapshot_download", download)
    with caplog.at_level(logging.WARNING):
        assert load("someone/tiny").path == folder
    assert "comes from the local cache" in caplog.text


def test_a_local_folder_wins_over_a_hub_id(folder: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put_into_cache(folder, hub_cache, "someone/tiny")
    monkeypatch.chdir(folder.parent)
    shutil.copytree(folder, folder.parent / "someone" / "tiny")
    assert load("someone/tiny").path == Path("someone/tiny")


def test_what_can_be_no_hub_id_is_said_to_be_neither() -> None:
    with pytest.raises(ModelLoadError, match="not a hub id"):
        load("two words/x")


# Target and draft


def with_tokens(folder: Path, tokens: dict[str, int]) -> loading.LoadedModel:
    families.write("llama", folder)
    families.write_tokenizer(folder, tokens)
    return load(folder)


def test_a_draft_with_the_same_tokens_is_accepted(tmp_path: Path) -> None:
    tokens = families.character_vocabulary()
    target = with_tokens(tmp_path / "target", tokens)
    # A padded or cut vocabulary is no difference.
    shorter = {token: index for token, index in tokens.items() if index < 80}
    longer = {**tokens, "<extra>": len(tokens)}
    for name, vocabulary in (("same", tokens), ("shorter", shorter), ("longer", longer)):
        check_same_tokenizer(target, with_tokens(tmp_path / name, vocabulary))


def test_a_draft_with_other_tokens_is_refused_naming_the_ids(tmp_path: Path) -> None:
    tokens = families.character_vocabulary()
    swapped = {**tokens, "A": tokens["B"], "B": tokens["A"]}
    target = with_tokens(tmp_path / "target", tokens)
    draft = with_tokens(tmp_path / "draft", swapped)
    first, second = sorted((tokens["A"], tokens["B"]))
    with pytest.raises(ModelLoadError, match=rf"2 of {len(tokens)} ids .*: {first} \('A' and 'B'\), {second} "):
        check_same_tokenizer(target, draft)


def test_a_draft_with_many_tokens_of_its_own_is_refused(tmp_path: Path) -> None:
    tokens = families.character_vocabulary()
    target = with_tokens(tmp_path / "target", {token: i for token, i in tokens.items() if i < 20})
    draft = with_tokens(tmp_path / "draft", tokens)
    with pytest.raises(ModelLoadError, match="ids that the target has not, 20 to"):
        check_same_tokenizer(target, draft)
