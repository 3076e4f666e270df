"""What is said of a model that cannot be loaded."""

from __future__ import annotations


class ModelLoadError(Exception):
    """A model that cannot be loaded, with a sentence a user can act on."""


def sentence(error: BaseException) -> str:
    """What an exception says in one line, as its type alone would not tell a user much."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if len(lines) > 1 and text.endswith(":"):
        text = f"{text} {lines[1]}"
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return text[:300].rstrip(".") or type(error).__name__
