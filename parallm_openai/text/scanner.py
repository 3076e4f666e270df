"""Finds marks in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


def pending(text: str, marks: Sequence[str]) -> int:
    """How many of the last characters of `text` could begin one of the marks."""
    return max((_begun(text, mark) for mark in marks), default=0)


def _begun(text: str, mark: str) -> int:
    at = text.find(mark[0], max(0, len(text) - len(mark) + 1)) if mark else -1
    while at >= 0 and not mark.startswith(text[at:]):
        at = text.find(mark[0], at + 1)
    return len(text) - at if at >= 0 else 0


def earliest(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """The first mark in `text` with its place; of two at one place the one that sorts first."""
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found) if found else None
