"""Rows of which the draft length knows all that it asks, and nothing else is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from parallm_openai.engine.speculation.draft_length.acceptance_rate import AcceptanceRate

LIMIT = 6
IDS = count()


@dataclass(eq=False)
class PlainRow:
    """All that the controller asks of a row."""

    id: int = field(default_factory=lambda: next(IDS))
    acceptance: AcceptanceRate | None = None


def new_rows(number: int) -> list[PlainRow]:
    return [PlainRow() for _ in range(number)]
