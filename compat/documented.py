"""The configurations of docs/clients.md, for the tests that run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from compat.matrix.clients import ROOT

PAGE = ROOT / "docs" / "clients.md"
# What stands in them for any server and its model.
URL, MODEL = "http://127.0.0.1:8080", "smollm2-135m-instruct"
SECONDS = 240

_SECTION = re.compile(r"^#{2,3} (.+)\n((?:(?!^#{2,3} ).*\n)*)", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """Each block of code: the title of its section, its language and its text."""
    sections = _SECTION.findall(PAGE.read_text(encoding="utf-8"))
    return [(title, language, text) for title, body in sections for language, text in _BLOCK.findall(body)]


def documented(title: str, language: str, url: str, model: str) -> str:
    """The block of a section, for the model of the server at `url`, which may end in /v1."""
    (text,) = [text for section, kind, text in blocks() if (section, kind) == (title, language)]
    assert URL in text
    assert MODEL in text
    return text.replace(URL, url.removesuffix("/v1")).replace(MODEL, model)


def run_python(title: str, url: str, model: str) -> str:
    """What the program of a section prints."""
    return run([sys.executable, "-c", documented(title, "python", url, model)])


def run(command: list[str], folder: Path | None = None) -> str:
    """What a program prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
