"""Text that needs no data: made-up words, the common ones often."""

from __future__ import annotations

import random


def words(seed: int, count: int) -> list[str]:
    """`count` words, the same for the same seed."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]
    known = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(6000)]
    return rng.choices(known, weights=[1 / (rank + 1) for rank in range(len(known))], k=count)
