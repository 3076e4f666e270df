"""Clients that are Node packages: a test in Python runs them against a server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from compat.documented import run
from compat.matrix.results import CASES

SECONDS = 300


def node_modules(folder: Path) -> Path:
    """Where a client's packages are; skips the test if they are not installed."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    modules = folder / "node_modules"
    if not modules.is_dir():
        pytest.skip(f"not installed here; `compat/run {folder.name}` installs it")
    return modules


def run_node_tests(folder: Path, url: str, note: Callable[[str, object], None]) -> None:
    """Run the client's own tests, `*.test.mjs`, against the server at `url`, and note how many there are."""
    node_modules(folder)
    ran = subprocess.run(
        ["node", "--test", "--test-reporter=tap"],
        cwd=folder,
        env=os.environ | {"PARALLM_URL": url},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"^# pass (\d+)$", ran.stdout, re.MULTILINE)
    assert passed is not None, ran.stdout
    assert int(passed[1]) > 0
    note(CASES, int(passed[1]))


def run_node_program(folder: Path, program: str) -> str:
    """What a program prints that uses the client's packages."""
    node_modules(folder)
    return run(["node", "--input-type=module", "-e", program], folder)
