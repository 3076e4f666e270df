"""What the wheel and the source distribution hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "parallm_openai"
# Made by Python itself, beside the files of the package.
CACHES = ("__pycache__", ".mypy_cache", ".ruff_cache")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def source(built: Path) -> set[str]:
    """The files of the source distribution, from its top folder on."""
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def files_of(folder: Path) -> set[str]:
    found = [file for file in folder.rglob("*") if file.is_file() and not set(CACHES) & set(file.parts)]
    return {str(file.relative_to(ROOT)) for file in found}


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == files_of(PACKAGE)
    expected = ("py.typed", "web/index.html", "demo/target/model.safetensors", "cpu/single_rows.c")
    assert {f"parallm_openai/{name}" for name in expected} <= names


def test_the_wheel_has_the_licence_of_all_that_it_brings(wheel: zipfile.ZipFile, metadata: Message) -> None:
    licences = {name.partition("/licenses/")[2] for name in wheel.namelist() if "/licenses/" in name}
    brought = [file for file in (PACKAGE / "web" / "vendor").iterdir() if file.suffix == ".txt"]
    assert len(brought) > 3
    assert licences == {"LICENSE", *(str(file.relative_to(ROOT)) for file in brought)}
    assert set(metadata.get_all("License-File", ())) == licences


def test_the_metadata_say_what_an_index_shows(metadata: Message) -> None:
    assert metadata["Name"] == "parallm-openai"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"bench", "cuda", "otel", "ray", "simulate", "test"} == set(metadata.get_all("Provides-Extra", ()))
    # What only tests and extras need is none of what everybody installs.
    always = [each for each in metadata.get_all("Requires-Dist", ()) if "extra ==" not in each]
    assert any(each.startswith("mlx-lm") for each in always)
    others = ("pytest", "opentelemetry", "matplotlib", "hatchling", "ray", "simpy")
    assert not [each for each in always if each.startswith(others)]


def test_the_source_distribution_can_build_and_test_itself(source: set[str]) -> None:
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "docker-less-run.sh",
        "tests/conftest.py",
        "scripts/test",
    } <= source
    for folder in ("parallm_openai", "tests", "compat", "docs", "examples"):
        assert files_of(ROOT / folder) <= source, folder
    assert not [name for name in source if name.startswith((".venv", ".git/"))]
