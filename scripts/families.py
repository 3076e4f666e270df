#!/usr/bin/env python3
"""Prints docs/families.md: how each family of models is served.

    PYTHONPATH=.:tests python scripts/families.py > docs/families.md

Nothing of it is known beforehand: it is what the check at load finds for a tiny random model of each family.
"""

from __future__ import annotations

from collections.abc import Iterator

from support import families

from parallm_openai.engine.capabilities import Capabilities, UnsupportedModelError, probe

HEAD = """# Families of models

How the engine serves each family. `scripts/families.py` writes this page: it makes a tiny model with random weights of
each family and notes what the check at load decides. That check compares a batch of rows of different lengths with
single rows: logits, and the recurrent states themselves, after rejected drafts too. Your own model is checked in the
same way whenever it is loaded; the log says how it is served, and why.

- **Batch**: `ragged` rows join, leave, draft and are rolled back at any step. Rows in `mlx-lm's` caches decode one
  token a step.
- **Speculation** is exact: a request's tokens are those that it gets alone and without drafts. After a rejected draft,
  a recurrent layer runs its mixers again over the accepted tokens: once for `all rows` if the mixers can pass over
  padding, otherwise once for `each count` of accepted tokens.
- **Prefix reuse**: a request goes on from `any` token up to which an earlier one began alike, or from the last such
  token after which a recurrent `state` was kept: near the end of a prompt, at the end of an answer, and where two
  prompts part.

The names are mlx-lm's, some with a variant behind them.

| family | batch | speculation | prefix reuse |
| --- | --- | --- | --- |"""


def rows() -> Iterator[str]:
    for family in sorted(families.FAMILIES):
        try:
            found = probe(families.model(family), families.VOCAB)
        except UnsupportedModelError as error:
            reason = str(error).split(": ", 1)[1].split(";")[0]
            yield f"| {family} | refused: {reason} | no | no |"
        else:
            yield f"| {family} | {' | '.join(_served(found))} |"


def _served(found: Capabilities) -> tuple[str, str, str]:
    if found.ragged is None:
        return f"mlx-lm's: {found.reason.split('since ')[1]}", "no", "no"
    if not found.ragged.recurrent:
        return "ragged", "yes", "any"
    return "ragged", f"yes, {'all rows' if found.ragged.masked else 'each count'}", "state"


if __name__ == "__main__":
    print(HEAD)
    print("\n".join(rows()))
