"""Models with names of their own: which one a command works with, what drafts for it, and how it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from support import gguf_files

from parallm_openai import demo
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.models.loading import LoadedModel, ModelLoadError, load
from parallm_openai.models.named import DEMO, NAMED, SMOLLM2, default_model, store
from parallm_openai.settings import DraftSettings, ModelSettings


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARALLM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def fetched(empty_store: Path) -> Path:
    """A tiny model in the place of the fetched one."""
    SMOLLM2.path.parent.mkdir(parents=True)
    gguf_files.write("llama", SMOLLM2.path)
    return SMOLLM2.path


def test_the_default_is_the_bundled_pair_until_the_real_model_is_fetched(empty_store: Path) -> None:
    assert default_model() is DEMO
    SMOLLM2.path.parent.mkdir(parents=True)
    SMOLLM2.path.touch()
    assert default_model() is SMOLLM2


def test_the_fallback_is_served_with_its_draft_and_says_so_in_a_line(
    empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_model(ModelSettings()).name == demo.MODEL_ID
    assert isinstance(load_draft(ModelSettings()), LoadedModel)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "parallm-openai models fetch smollm2" in said


def test_the_fetched_model_is_the_default_under_its_own_name(fetched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(ModelSettings())
    assert (loaded.name, loaded.path) == ("smollm2-135m-instruct", fetched)
    assert load_draft(ModelSettings()) == "auto"
    assert capsys.readouterr().err == ""


def test_a_name_asks_for_its_model_with_its_drafter(fetched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_model(ModelSettings(model="demo")).path == demo.TARGET_PATH
    draft = load_draft(ModelSettings(model="demo"))
    assert isinstance(draft, LoadedModel)
    assert draft.path == demo.DRAFT_PATH
    assert load_model(ModelSettings(model="smollm2")).path == fetched
    assert load_draft(ModelSettings(model="smollm2")) == "auto"
    assert capsys.readouterr().err == ""


def test_what_the_user_says_of_drafting_goes_before_what_belongs_to_the_name(fetched: Path) -> None:
    for name in (None, *NAMED):
        assert load_draft(ModelSettings(model=name), DraftSettings(draft="none")) is None
        assert load_draft(ModelSettings(model=name), DraftSettings(draft="suffix")) == "suffix"
    chosen = load_draft(ModelSettings(model="smollm2"), DraftSettings(draft_model="demo"))
    assert isinstance(chosen, LoadedModel)
    assert chosen.name == demo.MODEL_ID


def test_what_a_checkpoint_has_itself_drafts_for_a_model_without_a_draft_of_its_own(fetched: Path) -> None:
    assert load_draft(ModelSettings(model=str(fetched))) == "auto"


def test_a_named_model_that_is_not_here_is_refused_with_the_command_that_fetches_it(empty_store: Path) -> None:
    with pytest.raises(ModelLoadError, match="parallm-openai models fetch smollm2"):
        load("smollm2")
    with pytest.raises(typer.Exit):
        load_model(ModelSettings(model="smollm2"))


def test_a_store_that_cannot_be_had_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("PARALLM_MODELS", str(file))
    assert default_model() is DEMO


def test_the_store_is_in_the_users_cache_unless_a_variable_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PARALLM_MODELS", "")
    assert store() == tmp_path / "parallm-openai" / "models"
    monkeypatch.setenv("PARALLM_MODELS", "~/models")
    assert store() == Path.home() / "models"
