"""Text that needs no data: made-up words, the common ones often."""

from __future__ import annotations

import random

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]


def words(seed: int | str, count: int) -> list[str]:
    """`count` words of a few thousand, the same for the same seed."""
    rng = random.Random(seed)
    known = [_word(rng) for _ in range(6000)]
    return rng.choices(known, weights=[1 / (rank + 1) for rank in range(len(known))], k=count)


def lexicon(seed: int, count: int) -> list[str]:
    """`count` different words, each with the space before it; the same for the same seed."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" " + _word(rng)] = None
    return list(found)


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(1, 4)))
