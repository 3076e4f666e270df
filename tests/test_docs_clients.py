"""docs/clients.md: its configurations name a model and a URL of ours, and what it says was run has passed.

tests/test_docs_snippets.py runs its programs whose packages are installed, and `compat/` the others.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import yaml
from support.processes import ROOT
from support.servers import RunningServer

from compat.documented import MODEL, PAGE, URL, blocks
from compat.matrix.clients import clients
from parallm_openai.models.named import NAMED

PARSERS: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
# The clients that the page says were run, and where.
RUN = {
    "curl": "openai_python",
    "OpenAI SDK for Python": "openai_python",
    "OpenAI SDK for Node": "openai_node",
    "Anthropic SDK": "anthropic",
    "Ollama's clients": "ollama",
    "Vercel AI SDK": "vercel_ai",
    "Claude Code": "claude_code",
    "Codex CLI": "codex",
    "aider": "aider",
    "llm": "llm",
    "LangChain": "langchain",
    "LlamaIndex": "llamaindex",
    "LiteLLM": "litellm",
    "pydantic-ai": "pydantic_ai",
    "OpenAI Agents SDK": "openai_agents",
    "instructor": "instructor",
    "lm-evaluation-harness": "lm_eval",
}


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_configurations_parse_and_name_the_default_model() -> None:
    assert {named.served_name for named in NAMED.values()} >= {MODEL}
    found = [(title, PARSERS[language](text)) for title, language, text in blocks() if language in PARSERS]
    assert {title for title, _ in found} == {"Codex CLI", "Continue", "Zed", "LibreChat", "llm"}
    for title, parsed in found:
        values = list(strings(parsed))
        assert MODEL in values, title
        assert any(value in (URL, f"{URL}/v1") for value in values), title


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def test_urls_lead_to_routes_that_are_there(server: RunningServer) -> None:
    urls = set(re.findall(r"http://127\.0\.0\.1[\w:/.]*", PAGE.read_text(encoding="utf-8")))
    assert {url.partition("/v1")[0] for url in urls} == {URL}
    paths = {url.removeprefix(URL) for url in urls}
    assert paths == {"", "/v1", "/v1/chat/completions", "/v1/completions"}
    with server.client as client:
        for path in ("/v1/chat/completions", "/v1/completions"):
            assert client.get(path).headers["allow"] == "POST"


def test_clients_that_were_run_have_passed_in_the_matrix() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if re.search(r"\| run\b.*\|$", row)]
    linked = {name for row in rows for name in re.findall(r"\]\(#([\w-]+)\)", row)}
    assert linked == {anchor(title) for title in RUN}
    matrix = (ROOT / "compat" / "MATRIX.md").read_text(encoding="utf-8")
    known = {client.name for client in clients()}
    for folder in RUN.values():
        assert folder in known
        assert re.search(rf"^\| {folder} \|.*\| passed \d+", matrix, re.MULTILINE), folder
