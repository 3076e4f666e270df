"""Looking for marks in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


def pending(text: str, marks: Sequence[str]) -> int:
    """How many of the last characters of `text` could begin one of the marks."""
    longest = min(len(text), max(map(len, marks), default=1) - 1)
    for size in range(longest, 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0


def earliest(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """The first mark in `text` with its place; of two at one place the one that sorts first."""
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found) if found else None
