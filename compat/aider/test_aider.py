"""aider from its command line in a git repository: its prompts, the streamed answer, the edit and the commit.

A model this small writes no edits, so `guided_regex` has it answer in the form that aider reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AIDER = Path(sys.executable).with_name("aider")
SETTINGS = """
- name: openai/{model}
  edit_format: whole
  weak_model_name: openai/{model}
  use_repo_map: true
  streaming: {streaming}
  extra_params:
    max_tokens: 200
    extra_body: {{guided_regex: 'hello\\.py\\n```\\nprint\\("Hello[A-Za-z ]{{0,20}}"\\)\\n```\\n'}}
"""
QUIET = "--no-check-update --analytics-disable --no-show-release-notes --no-show-model-warnings --no-gitignore".split()
HANDS_OFF = "--yes-always --no-detect-urls --no-suggest-shell-commands --no-pretty --disable-playwright".split()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text('print("old")\n')
    (tmp_path / "other.py").write_text("def unrelated() -> int:\n    return 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "One")
    git(tmp_path, "config", "user.email", "one@example.org")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "Start")
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    """No settings but our own, and no table of models from the network."""
    return os.environ | {"HOME": str(home), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def git(repository: Path, *arguments: str) -> str:
    own = environment(repository)
    return subprocess.run(
        ["git", *arguments], cwd=repository, env=own, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("streaming", [True, False], ids=["streamed", "whole"])
def test_an_edit_is_made_and_committed(served: Any, repository: Path, tmp_path_factory: Any, streaming: bool) -> None:
    settings = tmp_path_factory.mktemp("aider") / "settings.yml"
    settings.write_text(SETTINGS.format(model=served.model, streaming=str(streaming).lower()))
    done = subprocess.run(
        [
            *(AIDER, "--model", f"openai/{served.model}", "--openai-api-base", served.url, "--openai-api-key", "none"),
            *("--model-settings-file", str(settings), *QUIET, *HANDS_OFF),
            *("--message", "Print a greeting instead.", "hello.py"),
        ],
        cwd=repository,
        env=environment(repository),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Applied edit to hello.py" in done.stdout
    assert (repository / "hello.py").read_text() != 'print("old")\n'
    assert git(repository, "rev-list", "--count", "HEAD").strip() == "2"
    assert "aider" in git(repository, "log", "-1", "--format=%an %b")
    assert "Tokens:" in done.stdout
