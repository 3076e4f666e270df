"""The documents' links lead somewhere, and their Python is Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.processes import ROOT

from parallm_openai.cli import chat, generate, serve
from parallm_openai.cli.command import options_of_command

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "examples" / "README.md",
    ROOT / "compat" / "README.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_titles_that_are_there(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_documents_compiles(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        compile(code, str(page), "exec")


def test_the_names_of_other_programs_are_those_that_the_settings_have() -> None:
    rows = re.findall(r"^\| (`-.*?) \| (?:vLLM|mlx_lm|llama\.cpp) \| `(--[a-z-]+)` \|$", CLI_PAGE, re.MULTILINE)
    written = {(alias, flag) for aliases, flag in rows for alias in re.findall(r"`(-.*?)`", aliases)}
    every = [serve.serve, generate.generate, chat.chat]
    known = {(alias, each.flag) for command in every for each in options_of_command(command) for alias in each.aliases}
    assert written == known - {("--verbose", "--stats")}


def test_the_readme_is_a_landing_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170
