"""`docker-less-run.sh` on an environment that is installed already: what it fetches, and what it starts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT
from support.terminal import Terminal

pytestmark = pytest.mark.slow

FETCH = "models fetch smollm2"
SCRIPT = str(ROOT / "docker-less-run.sh")
OWN = {"PARALLM_MODEL": "", "PARALLM_CONFIG": "", "PARALLM_CUDA": ""}


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


def run(venv: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env=os.environ | OWN | {"PARALLM_VENV": str(venv)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def calls(venv: Path, *arguments: str, **variables: str) -> list[str]:
    done = run(venv, *arguments, **variables)
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


@pytest.mark.parametrize(
    "arguments", [["--model", "x"], ["--model=x"], ["-m", "x"], ["-mx"], ["x"], ["--config", "x.toml"], ["--config=x"]]
)
def test_nothing_is_fetched_if_a_flag_names_another_model(environment: Path, arguments: list[str]) -> None:
    assert calls(environment, *arguments) == [f"serve {' '.join(arguments)}"]


@pytest.mark.parametrize("variable", ["PARALLM_MODEL", "PARALLM_CONFIG"])
def test_nothing_is_fetched_if_a_variable_names_another_model(environment: Path, variable: str) -> None:
    assert calls(environment, **{variable: "x"}) == ["serve"]


def test_a_draft_model_is_no_other_model(environment: Path) -> None:
    assert calls(environment, "-md", "x") == [FETCH, "serve -md x"]


def test_tests_fetch_nothing(environment: Path) -> None:
    assert calls(environment, "--setup-only", "--test") == []


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["chat"], [FETCH, "chat"]),
        (["chat", "demo", "--stats"], ["chat demo --stats"]),
        (["chat", "--url", "http://127.0.0.1:8080"], ["chat --url http://127.0.0.1:8080"]),
        (["generate", "Hello"], [FETCH, "generate Hello"]),
        # What stands behind a command is that command's own.
        (["generate", "--test", "serve", "--cuda"], [FETCH, "generate --test serve --cuda"]),
        (["generate", "-m", "demo", "chat"], ["generate -m demo chat"]),
        (["doctor"], [FETCH, "doctor"]),
        (["bench", "--rounds", "1"], ["bench --rounds 1"]),
        (["models", "list"], ["models list"]),
        (["serve", "demo"], ["serve demo"]),
        (["--port", "3", "chat"], [FETCH, "serve --port 3 chat"]),
        (["chat", "-h"], ["chat --help"]),
        (["models", "show", "--help"], ["models show --help"]),
    ],
)
def test_commands_are_passed_through(environment: Path, arguments: list[str], called: list[str]) -> None:
    assert calls(environment, *arguments) == called


def test_the_end_of_setting_up_says_where_the_command_is(environment: Path) -> None:
    said = run(environment, "--setup-only").stderr
    assert f"the command is {environment}/bin/parallm-openai; `source {environment}/bin/activate`" in said
    assert "the command is" not in run(environment, "models", "list").stderr


# Installing


PIP = """\
echo "$*" >>"{calls}"
case "$*" in *"pip install"*)
    echo "Collecting wheel"; echo "  Downloading wheel-1.whl (12 MB)"; echo "Installing collected packages: wheel"
    echo "WARNING: something" >&2
    exit "${{PIP_STATUS:-0}}" ;;
esac
"""


@pytest.fixture
def fresh(environment: Path) -> Path:
    """The same with nothing installed, and a pip that only says so."""
    (environment / ".parallm-installed").unlink()
    python = environment / "bin" / "python"
    shebang, rest = python.read_text().split("\n", 1)
    python.write_text(f"{shebang}\n{PIP.format(calls=environment.parent / 'pip')}{rest}")
    return environment


def test_a_log_tells_what_is_downloaded(fresh: Path) -> None:
    done = run(fresh, "models", "list")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for line in ("  Downloading wheel-1.whl (12 MB)", "Installing collected packages: wheel", "WARNING: something"):
        assert line in done.stderr.splitlines()
    assert "Collecting" not in done.stderr
    assert "the command is" in done.stderr
    assert "--progress-bar off" in (fresh.parent / "pip").read_text()


def test_a_terminal_shows_pips_own_progress(fresh: Path) -> None:
    terminal = Terminal("models", "list", command=[SCRIPT], **OWN, PARALLM_VENV=str(fresh))
    try:
        assert terminal.end() == 0, terminal.output
        assert "Collecting wheel" in terminal.output
        called = (fresh.parent / "pip").read_text()
        assert "pip install" in called
        assert "--progress-bar" not in called
        assert "--quiet" not in called
    finally:
        terminal.close()


def test_an_installation_that_fails_says_so_and_is_not_remembered(fresh: Path) -> None:
    done = run(fresh, "models", "list", PIP_STATUS="1")
    assert done.returncode == 1
    assert "the installation failed; see pip's message above" in done.stderr
    assert not (fresh / ".parallm-installed").exists()
