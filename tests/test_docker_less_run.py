"""`docker-less-run.sh` on an environment that is installed already: what it fetches, and what it starts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.slow

FETCH = "models fetch smollm2"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose `parallm-openai` notes what it is called with."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program = venv / "bin" / "parallm-openai"
    program.write_text(f'#!/bin/sh\necho "$*" >>"{tmp_path}/calls"\n[ "$1" != models ] || exit "${{FETCHED:-0}}"\n')
    for file in (python, program):
        file.chmod(0o755)
    installed = hashlib.sha256(f"{ROOT}\n".encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    (venv / ".parallm-installed").write_text(f"{installed} \n{installed} test\n")
    return venv


def calls(venv: Path, *arguments: str, **variables: str) -> list[str]:
    own = {"PARALLM_VENV": str(venv), "PARALLM_MODEL": "", "PARALLM_CONFIG": "", "PARALLM_CUDA": ""}
    done = subprocess.run(
        [str(ROOT / "docker-less-run.sh"), *arguments],
        env=os.environ | own | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not venv.with_name("venv.lock").exists()
    noted = venv.parent / "calls"
    return noted.read_text().splitlines() if noted.exists() else []


def test_the_model_is_fetched_before_it_is_served(environment: Path) -> None:
    assert calls(environment, "--port", "8000") == [FETCH, "serve --port 8000"]


def test_setting_up_fetches_so_that_the_first_start_can_be_offline(environment: Path) -> None:
    assert calls(environment, "--setup-only") == [FETCH]


def test_what_cannot_be_fetched_does_not_keep_the_server_from_starting(environment: Path) -> None:
    assert calls(environment, FETCHED="1") == [FETCH, "serve"]


@pytest.mark.parametrize("arguments", [["--model", "x"], ["--model=x"], ["--config", "x.toml"], ["--config=x.toml"]])
def test_nothing_is_fetched_if_a_flag_names_another_model(environment: Path, arguments: list[str]) -> None:
    assert calls(environment, *arguments) == [f"serve {' '.join(arguments)}"]


@pytest.mark.parametrize("variable", ["PARALLM_MODEL", "PARALLM_CONFIG"])
def test_nothing_is_fetched_if_a_variable_names_another_model(environment: Path, variable: str) -> None:
    assert calls(environment, **{variable: "x"}) == ["serve"]


def test_tests_fetch_nothing(environment: Path) -> None:
    assert calls(environment, "--setup-only", "--test") == []
