"""Where a model's folder has its chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Template = str | dict[str, str]


def missed_chat_template(folder: Path) -> Template | None:
    """The chat template, if transformers does not find all of it by itself; otherwise None.

    transformers leaves `chat_template.json` to processors, and forgets the template of `tokenizer_config.json` if only
    files for other uses lie beside it.
    """
    if (folder / "chat_template.jinja").is_file():
        return None
    configured = _read(folder / "tokenizer_config.json")
    found = configured or _read(folder / "chat_template.json")
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not more:
        return None if configured else found
    default = {"default": found} if isinstance(found, str) else found or {}
    return default | {file.stem: file.read_text(encoding="utf-8") for file in more}


def template_beside(folder: Path) -> Template | None:
    """The template of `chat_template.jinja` or `chat_template.json` in the folder, for models that have no others."""
    jinja = folder / "chat_template.jinja"
    return jinja.read_text(encoding="utf-8") if jinja.is_file() else _read(folder / "chat_template.json")


def _read(file: Path) -> Template | None:
    """What the file calls `chat_template`: one, or several by their names."""
    if not file.is_file():
        return None
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    template = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}
    return template or None
