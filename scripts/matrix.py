#!/usr/bin/env python3
"""Prints docs/matrix.md: what tests/test_matrix.py crosses with what.

PYTHONPATH=.:tests python scripts/matrix.py > docs/matrix.md
"""

from __future__ import annotations

from test_matrix import CASES, FACTORS, PLANTED

HEAD = """# Every feature with every other

A request's output is a function of the request: with drafts or without, alone or in a batch, from a stored prefix or
from the start. `tests/test_matrix.py` holds the server to that. It crosses the choices below so that **any two of them
meet in some case**, which takes {cases} cases; only one of these families has heads for multi-token prediction (MTP).
In each, a server answers chats among neighbours of other kinds. The answers must be those of the same model without
drafts, batch and stored prefixes: text, thoughts, calls, reasons to stop, and log-probabilities to a thousandth.

| what | choices |
| --- | --- |
{factors}

Models are tiny and random: a trained one is sure of most tokens, which hides small errors. Sampled requests under
acceptance by rejection are missing, because their tokens depend on the drafts. That their distribution does not is a
test of its own (`tests/test_speculative_decoding.py`). Two property tests draw other mixtures at random and compare the
engine with a slow decoder that is written by the book.

A table of green cases proves nothing if it cannot turn red. Each of these errors, planted one at a time, shows in some
case:

{errors}

[Families](families.md) says how each family of models is served, and by which check."""


def page() -> str:
    factors = "\n".join(f"| {name} | {'; '.join(choices)} |" for name, choices in FACTORS.items())
    errors = "\n".join(f"- {error};" for error in PLANTED)
    return HEAD.format(cases=len(CASES), factors=factors, errors=f"{errors[:-1]}.")


if __name__ == "__main__":
    print(page())
