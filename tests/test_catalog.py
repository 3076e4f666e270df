"""`parallm-openai models`: what is here, what a model is, and that removal touches nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from gguf import GGMLQuantizationType as Kind
from mlx_lm.utils import quantize_model, save_config
from support import families, gguf_files, hub
from typer.testing import CliRunner

from parallm_openai import cli, demo
from parallm_openai.catalog.description import describe
from parallm_openai.catalog.drafters import drafters_for
from parallm_openai.catalog.errors import CatalogError
from parallm_openai.catalog.fetching import fetch_model
from parallm_openai.catalog.header import read_header
from parallm_openai.catalog.listing import Origin, list_models, place_of
from parallm_openai.catalog.removal import removal_of
from parallm_openai.catalog.sizes import in_bytes
from parallm_openai.engine.capabilities import probe
from parallm_openai.models.loading import load
from parallm_openai.models.named import SMOLLM2
from parallm_openai.models.weights import on_plain_cpu


def run(*arguments: str, input: str | None = None) -> Any:
    return CliRunner().invoke(cli.app, ["models", *arguments], input=input)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache; the store of fetched models lies beside it. Both are empty."""
    monkeypatch.setenv("PARALLM_MODELS", str(tmp_path / "store"))
    return hub.use_cache(tmp_path / "hub", monkeypatch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def fetched() -> Path:
    """A tiny model in the place of the fetched one."""
    SMOLLM2.path.parent.mkdir(parents=True)
    gguf_files.write("llama", SMOLLM2.path)
    return SMOLLM2.path


# What is here


def test_named_models_come_first_and_say_whether_they_are_here(fetched: Path) -> None:
    assert [(entry.name, entry.origin, entry.path) for entry in list_models()] == [
        ("smollm2", Origin.FETCHED, fetched),
        ("demo", Origin.BUNDLED, demo.TARGET_PATH),
    ]
    fetched.unlink()
    assert (list_models()[0].origin, list_models()[0].path) == (Origin.NOT_FETCHED, None)


def test_of_the_hubs_cache_those_are_listed_that_could_be_served(cache: Path, tiny: Path, tmp_path: Path) -> None:
    hub.put_into_cache(tiny, cache, "someone/tiny")
    weightless = shutil.copytree(tiny, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    hub.put_into_cache(weightless, cache, "someone/config-only")
    hub.put_into_cache(tiny, cache, "another/tiny")
    found = [entry for entry in list_models() if entry.origin is Origin.HUB]
    assert [entry.name for entry in found] == ["another/tiny", "someone/tiny"]
    assert all(load(str(entry.path)).vocab_size == families.VOCAB for entry in found)


def test_the_list_shows_every_model_with_all_of_its_path(cache: Path, tiny: Path) -> None:
    hub.put_into_cache(tiny, cache, "someone/tiny")
    said = "".join(run("list").stdout.split())
    for entry in list_models():
        assert entry.name in said
        assert str(entry.path or entry.origin).replace(" ", "") in said


# What a model is


def facts_of(model: object, length: int | None = None) -> dict[str, str]:
    return dict(describe(str(model), length))


@pytest.mark.parametrize("kind", [None, Kind.F32, Kind.Q4_0, Kind.Q6_K])
def test_sizes_are_those_of_the_loaded_model(kind: Kind | None, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    if kind is None:
        model = families.write("llama", tmp_path / "tiny")
    else:
        gguf_files.write("llama", model, kind)
    header, loaded = read_header(model), load(model)
    assert header.vocabulary == loaded.tokenizer.get_vocab()
    assert header.context_length == loaded.context_length
    assert header.token_bytes == probe(loaded.model, loaded.vocab_size).token_bytes
    # What MLX's form of small groups adds is known to a few percent.
    assert header.weight_bytes == pytest.approx(loaded.weight_bytes, rel=0.05)
    if on_plain_cpu():
        assert header.parameters == sum(array.size for array in families.arrays(loaded.model).values())


def test_a_row_takes_as_much_as_its_length_says() -> None:
    facts = facts_of("demo", 1000)
    token = read_header(demo.TARGET_PATH).token_bytes
    assert token
    assert facts["memory of a row of 1000 tokens"].startswith(in_bytes(1000 * token))
    assert "memory of a row of 8192 tokens" in facts_of("demo", 10**9)


def test_a_quantised_folder_says_how_and_counts_packed_weights_one_by_one(tmp_path: Path) -> None:
    config = {**families.config("llama"), "hidden_size": 64, "intermediate_size": 64}
    plain = families.build(config)
    size = sum(array.size for array in families.arrays(plain).values())
    folder = families.write("llama", tmp_path / "plain", built=plain)
    save_config(config, folder / "config.json")
    assert facts_of(folder)["quantisation"].startswith("none (float")
    assert read_header(folder).parameters == size
    quantised, settings = quantize_model(plain, config, group_size=64, bits=4)
    folder = families.write("llama", tmp_path / "quantised", built=quantised)
    save_config(settings, folder / "config.json")
    assert facts_of(folder)["quantisation"] == "4 bits, groups of 64"
    assert read_header(folder).parameters == size


def test_a_row_of_a_hybrid_takes_its_states_and_keys_and_values(tmp_path: Path) -> None:
    folder = families.write("lfm2", tmp_path / "lfm2")
    header = read_header(folder)
    assert header.token_bytes
    assert header.state_bytes
    facts = facts_of(folder, 100)
    assert facts["speculation"] == "yes"
    whole = in_bytes(100 * header.token_bytes + header.state_bytes)
    assert facts["memory of a row of 100 tokens"] == (
        f"{whole} ({in_bytes(header.token_bytes)} a token, {in_bytes(header.state_bytes)} of recurrent states)"
    )


def test_a_model_of_recurrent_layers_alone_takes_the_same_at_any_length(tmp_path: Path) -> None:
    header = read_header(families.write("mamba2", tmp_path / "mamba2"))
    assert header.token_bytes == 0
    assert header.state_bytes


def test_a_model_with_layers_of_another_kind_is_not_promised_drafts(tmp_path: Path) -> None:
    facts = facts_of(families.write("llama4", tmp_path / "llama4"))
    assert facts["speculation"].startswith("no")
    assert facts["could draft for it"] == "nothing"


def test_no_weight_is_read(tiny: Path) -> None:
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    read_header(tiny)
    largest = max(file.stat().st_size for file in tiny.glob("*.safetensors"))
    assert mx.get_peak_memory() - before < largest


def test_smaller_models_of_the_same_tokenizer_could_draft(cache: Path, tiny: Path, fetched: Path) -> None:
    target = read_header(demo.TARGET_PATH)
    draft = hub.put_into_cache(demo.DRAFT_PATH, cache, "someone/draft")
    hub.put_into_cache(tiny, cache, "someone/other-tokenizer")
    hub.put_into_cache(demo.TARGET_PATH, cache, "someone/same-size")
    broken = hub.put_into_cache(tiny, cache, "someone/broken")
    next(broken.rglob("config.json")).write_text("{")
    assert sorted(drafters_for(target)) == sorted(["someone/draft", str(demo.DRAFT_PATH)])
    assert drafters_for(read_header(next(draft.rglob("config.json")).parent)) == []


def test_a_model_is_shown_by_name_path_and_hub_id_but_not_fetched_for_it(cache: Path, tiny: Path) -> None:
    hub.put_into_cache(tiny, cache, "someone/tiny")
    for name in ("demo", str(tiny), "someone/tiny"):
        answer = run("show", name)
        assert answer.exit_code == 0, answer.output
        assert "llama" in answer.stdout
    for name in ("smollm2", "someone/other", "/no/such/folder"):
        answer = run("show", name)
        assert (answer.exit_code, answer.stdout) == (1, "")
        assert f"{name} is not here" in answer.stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "nosuch"}', '{"model_type": "llama"}'])
def test_what_is_no_model_is_said_to_be_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CatalogError, match="cannot be read"):
        read_header(place_of(str(tmp_path)))


# Fetching


def test_a_bundled_model_and_one_in_the_hubs_cache_need_no_network(cache: Path, tiny: Path) -> None:
    hub.put_into_cache(tiny, cache, "someone/tiny")
    assert fetch_model("demo", progress=False) == demo.TARGET_PATH
    assert fetch_model("someone/tiny", progress=False).is_relative_to(cache)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch", "there is no model named nosuch; give smollm2, demo, or a hub id"),
        ("someone/absent", "not in the hub's local cache, and it could not be downloaded"),
        ("/no/such/folder", "there is no model folder or file"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_a_sentence(name: str, said: str) -> None:
    answer = run("fetch", name)
    assert answer.exit_code == 1
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1


# Removal


def files(*folders: Path) -> set[Path]:
    return {file for folder in folders for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def full(cache: Path, tiny: Path, fetched: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder that holds store and cache, with neighbours that must stay."""
    hub.put_into_cache(tiny, cache, "someone/tiny")
    hub.put_into_cache(tiny, cache, "someone/tiny2")
    (fetched.parent / "mine.txt").write_text("mine")
    (tmp_path / "store" / "mine.gguf").write_text("mine")
    kept = files(demo.TARGET_PATH, tiny)
    yield tmp_path
    assert files(demo.TARGET_PATH, tiny) == kept


def test_removal_takes_the_named_model_and_nothing_else(full: Path, fetched: Path, cache: Path) -> None:
    before = files(full)
    assert run("remove", "smollm2", "--yes").exit_code == 0
    assert before - files(full) == {fetched}
    assert run("remove", "someone/tiny", "--yes").exit_code == 0
    gone = before - files(full) - {fetched}
    assert gone
    assert [file for file in gone if not file.is_relative_to(cache / "models--someone--tiny")] == []
    assert [entry.name for entry in list_models() if entry.origin is Origin.HUB] == ["someone/tiny2"]


@pytest.mark.parametrize("answered", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_removed(full: Path, answered: str) -> None:
    before = files(full)
    assert run("remove", "smollm2", input=answered).exit_code == 1
    assert files(full) == before
    assert run("remove", "smollm2", input="y\n").exit_code == 0
    assert files(full) < before


@pytest.mark.parametrize(
    "name",
    ["demo", "nosuch", "", ".", "..", "someone", "someone/..", "../hub/models--someone--tiny", "/", "PATH", "STORE"],
)
def test_what_is_no_name_of_a_removable_model_removes_nothing(full: Path, tiny: Path, name: str) -> None:
    before = files(full)
    name = {"PATH": str(tiny), "STORE": str(full / "store" / "smollm2")}.get(name, name)
    with pytest.raises(CatalogError):
        removal_of(name)
    assert run("remove", name, "--yes").exit_code == 1
    assert files(full) == before


def test_a_model_that_is_not_fetched_cannot_be_removed() -> None:
    with pytest.raises(CatalogError, match="has not been fetched"):
        removal_of("smollm2")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (10**12, "1 TB"), (5 * 10**16, "5e+04 TB")]
)
def test_sizes_are_in_decimal_units(size: int, text: str) -> None:
    assert in_bytes(size) == text
