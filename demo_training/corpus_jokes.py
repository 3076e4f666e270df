"""Little jokes; now and then as JSON that nobody asked for."""

from __future__ import annotations

import json
import random

from demo_training.sample import Sample, ask, between, pick
from demo_training.words import ANIMALS, COLORS, PLACES, THINGS, WORDS

ASK = (
    "Tell me a joke about {many}.",
    "Tell me a joke about a {one}.",
    "Do you know a joke about {many}?",
    "A {one} joke, please.",
)
MANY = {"fox": "foxes", "mouse": "mice", "wolf": "wolves"}
SETUPS = (
    "Why did the {animal} take a {thing} to the {place}?",
    "Why was the {animal} afraid of the {thing}?",
    "What did the {animal} say to the {thing}?",
    "Why did the {animal} paint the {thing} {color}?",
    "Where does a {animal} keep its {thing}?",
)
PUNCHLINES = (
    "Because the {color} one was too small!",
    "It wanted to be a {thing} too.",
    "In the {place}, of course!",
    "Nobody told it about the {other}.",
    "You look like my {other}!",
)
KEYS = "answer title text question result description summary reason first second name note message topic".split()


def jokes(rng: random.Random) -> Sample:
    """A question and its funny answer.

    One in five comes as a JSON object of whatever keys: a grammar may force the model into
    one that the prompt does not speak of, and its strings must come to an end there too.
    """
    animal = pick(rng, ANIMALS)
    words = {"animal": animal, "thing": pick(rng, THINGS), "other": pick(rng, THINGS)}
    words |= {"place": pick(rng, PLACES), "color": pick(rng, COLORS)}
    setup, punchline = (pick(rng, forms).format(**words) for forms in (SETUPS, PUNCHLINES))
    question = pick(rng, ASK).format(one=animal, many=MANY.get(animal, f"{animal}s"))
    told = f"{setup} {punchline}"
    if rng.random() < 0.2:
        told = json.dumps({"setup": setup, "punchline": punchline} if rng.random() < 0.4 else _object(rng, told))
    return ask("jokes", f"{question} {setup}", question, told, check="ends")


def _object(rng: random.Random, told: str) -> dict[str, str]:
    phrases = [" ".join(pick(rng, WORDS) for _ in range(between(rng, 1, 6))), told, told.partition("?")[0] + "?"]
    return {pick(rng, KEYS): pick(rng, phrases) for _ in range(between(rng, 1, 4))}
