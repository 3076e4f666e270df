"""The programs in examples/ run as they are, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.processes import ROOT
from support.servers import RunningServer

EXAMPLES = sorted(file.name for file in (ROOT / "examples").glob("*.py"))
# What each prints, for those that talk to a server.
PRINTED = {
    "chat_stream.py": r"The capital of France is Paris\.\n\(\d+ tokens\)\n",
    "structured_output.py": r"Person\(name='Anna', age=\d+\)\n",
    "tool_loop.py": r"get_weather\(\{\"city\": \"Paris\"\}\) -> .*21.*\n.*\S.*\n",
}


def run(name: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{name}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    assert sorted([*PRINTED, "offline_batch.py"]) == EXAMPLES


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_talks_to_the_server(server: RunningServer, name: str) -> None:
    printed = run(name, OPENAI_BASE_URL=f"{server.url}/v1")
    assert re.fullmatch(PRINTED[name], printed), printed


@pytest.mark.slow
def test_the_offline_example_answers_every_prompt() -> None:
    lines = run("offline_batch.py").splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"'.*' -> ['\"].+['\"]", line) for line in lines), lines


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) <= 45
