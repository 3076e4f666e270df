"""Drills in copying and looking up: dense practice for the heads that everything else leans on.

A small model sees few tokens, and copying a name from the prompt only comes once
attention has learned to find the earlier occurrence. These documents are nearly all
such occurrences. They come often at the start and seldom later.
"""

from __future__ import annotations

import random

from demo_training.sample import Sample, between, choose, pick, raw
from demo_training.words import CITIES, NAMES, THINGS, WORDS, made_up


def _item(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return made_up(rng)
    if kind < 0.55:
        return str(between(rng, 0, 999))
    return pick(rng, pick(rng, (WORDS, NAMES, CITIES, THINGS)))


def copying(rng: random.Random) -> Sample:
    """A line of random items, said again once or more."""
    mark = pick(rng, (" ", " ", ", ", '", "'))
    line = mark.join(_item(rng) for _ in range(between(rng, 3, 24)))
    again = "\n".join([line] * between(rng, 1, 3))
    return _drill(line, f"{line}\n", again)


def looking_up(rng: random.Random) -> Sample:
    """Pairs of a name and a value, asked for again in another order."""
    names = list(dict.fromkeys(_item(rng) for _ in range(between(rng, 3, 10))))
    mark = pick(rng, (": ", " is ", " = "))
    lines = [f"{name}{mark}{_item(rng)}" for name in names]
    again = [line for _ in range(2) for line in choose(rng, lines, len(lines))]
    return _drill(" ".join(lines), "\n".join(lines) + "\n", "\n".join(again))


def _drill(key: str, given: str, wanted: str) -> Sample:
    sample = raw("drill", key, given, wanted)
    sample.learn_prompt = False
    return sample


def drill(rng: random.Random) -> Sample:
    """One drill of either kind."""
    return copying(rng) if rng.random() < 0.6 else looking_up(rng)
