"""Tokenizers with other models' chat templates: what a template does needs no weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from parallm_openai.text.tokenizer import Tokenizer
from support.servers import demo_target

TEMPLATES = Path(__file__).parents[3] / "shared" / "chat_templates"
NAMES = sorted(file.stem for file in TEMPLATES.glob("*.jinja"))
needs_templates = pytest.mark.skipif(not NAMES, reason="the collection of chat templates is not here")


def wrapper_with(template: str | dict[str, str] | None) -> TokenizerWrapper:
    """The demo model's tokenizer with another chat template."""
    tokenizer = copy.copy(demo_target().tokenizer._tokenizer)
    tokenizer.chat_template = template
    return TokenizerWrapper(tokenizer)


def tokenizer_with(template: str | dict[str, str]) -> Tokenizer:
    return Tokenizer(wrapper_with(template), demo_target().vocab_size)


def source(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def function(name: str, **definition: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **definition}}


def call(id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
