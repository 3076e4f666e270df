"""Tokenizers with other models' chat templates: what a template does needs no weights."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from parallm_openai.text.tokenizer import Tokenizer
from support.servers import demo_target

# One small template for each family's shape, so that every clone of the project tests them all.
OWN = {file.stem: file for file in (Path(__file__).parent / "templates").glob("*.jinja")}
# Templates as models' makers publish them; their licences keep them out of the project.
FOLDER = Path(os.environ.get("PARALLM_CHAT_TEMPLATES", Path(__file__).parents[3] / "shared" / "chat_templates"))
PUBLISHED = {file.stem: file for file in FOLDER.glob("*.jinja")}
NAMES = [*sorted(OWN), *sorted(PUBLISHED)]
# Names as parameters of tests: the published ones are not among the fast tests.
EACH = [*sorted(OWN), *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(PUBLISHED))]


def summary() -> str:
    """A line for the tests' output: which templates this run has."""
    found = f"{len(PUBLISHED)} published ones in {FOLDER}" if PUBLISHED else f"no published ones in {FOLDER}"
    return f"chat templates: {len(OWN)} of the tests' own, {found} (PARALLM_CHAT_TEMPLATES names another folder)"


def published(name: str, *values: Any) -> Any:
    """A parameter that needs a published template; its test is skipped where that is absent."""
    absent = pytest.mark.skipif(name not in PUBLISHED, reason=f"no {name}.jinja in {FOLDER}")
    return pytest.param(name, *values, marks=(pytest.mark.slow, absent), id="-".join([name, *map(str, values)]))


def wrapper_with(template: str | dict[str, str] | None) -> TokenizerWrapper:
    """The demo model's tokenizer with another chat template."""
    tokenizer = copy.copy(demo_target().tokenizer._tokenizer)
    tokenizer.chat_template = template
    return TokenizerWrapper(tokenizer)


def tokenizer_with(template: str | dict[str, str], tool_format: str = "auto") -> Tokenizer:
    return Tokenizer(wrapper_with(template), demo_target().vocab_size, tool_format)


def source(name: str) -> str:
    return (OWN | PUBLISHED)[name].read_text(encoding="utf-8")


def function(name: str, **definition: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **definition}}


def call(id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
