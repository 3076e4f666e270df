"""Little stories from a grammar, short and long, in chat and as raw text."""

from __future__ import annotations

import random

from demo_training.sample import Sample, choose, pick, raw
from demo_training.sample import assistant as assistant_message
from demo_training.sample import user as user_message
from demo_training.words import ANIMALS, COLORS, PLACES, THINGS, person

OPENINGS = (
    "Once upon a time there was a {adj} {animal} named {name}.",
    "Once upon a time, in a quiet {place}, lived a {animal} named {name}.",
    "Long ago, a {adj} {animal} named {name} lived near a {place}.",
    "There once was a {animal} called {name} who lived in a {place}.",
)
HABITS = (
    "{name} loved to walk in the {place} every morning.",
    "Every day {name} sat under a big tree and looked at the sky.",
    "{name} had a {color} {thing} and took it everywhere.",
    "{name} liked to sing, and the whole {place} could hear it.",
    "All the animals knew {name} and liked to visit.",
)
PROBLEMS = (
    "One day the {color} {thing} was gone.",
    "One morning {name} found a {color} {thing} on the path.",
    "One evening a strong wind blew through the {place}.",
    "One day {name} heard a strange sound behind the hill.",
    "Then the rain came and did not stop for three days. 🌧️",
    "One night a bright star fell into the {place}. ✨",
)
MEETINGS = (
    "Soon {name} met a {other} named {friend}.",
    "On the way {name} saw a {other} named {friend}, who looked sad.",
    "A {other} called {friend} came out of the trees.",
    "Near the old bridge stood a {other} named {friend}.",
)
SPEECH = (
    '"Can you help me?" asked {name}. "Of course," said {friend}.',
    '"I am looking for my home," said {friend}. "Come with me," said {name}.',
    '"Do not be afraid," said {friend}. "We will find a way."',
    '"What a day!" said {friend}, and {name} laughed.',
    '"你好！" said {friend}, who came from far away. {name} smiled.',
    '"Où vas-tu ?" asked {friend} in French, and {name} pointed at the {place}.',
)
EVENTS = (
    "Together they walked across the {place} until the sun went down.",
    "They built a small boat and crossed the river.",
    "They climbed the highest hill and looked around.",
    "They shared some bread and a cup of warm milk.",
    "They followed the small lights that danced between the trees.",
    "They found an old map under a flat stone.",
    "They opened a little door and saw a room full of books.",
    "They asked the old owl, who knew every secret of the {place}.",
    "They slept under the stars, and the moon watched over them. 🌙",
)
TURNS = (
    "At last they found what they were looking for.",
    "Then {friend} had a good idea, and it worked.",
    "In the end it was only a lost {thing}.",
    "Behind the old wall they found a {color} {thing}.",
    "Suddenly the clouds opened and the sun came out. ☀️",
)
ENDINGS = (
    "From that day on, {name} and {friend} were best friends.",
    "{name} and {friend} went home happy, and everyone in the {place} was glad.",
    "And so {name} learned that a good friend is worth more than gold.",
    "They lived happily ever after.",
    "That night {name} slept very well, and so did {friend}. 😊",
)
ADJECTIVES = ["small", "brave", "clever", "shy", "kind", "old", "young", "happy", "curious", "gentle"]


def story(rng: random.Random, name: str, animal: str, place: str, length: int) -> str:
    """A story of about `length` middle events, in one to several paragraphs."""
    friend = person(rng)
    while friend == name:
        friend = person(rng)
    slots = {
        "name": name,
        "animal": animal,
        "place": place,
        "friend": friend,
        "other": pick(rng, [a for a in ANIMALS if a[0] not in "ao" and a != animal]),
        "color": pick(rng, [c for c in COLORS if c != "orange"]),
        "thing": pick(rng, [t for t in THINGS if t[0] not in "aeiou"]),
        "adj": pick(rng, [a for a in ADJECTIVES if a[0] not in "o"]),
    }
    parts = [pick(rng, OPENINGS)]
    parts += choose(rng, HABITS, 1 if length < 4 else 3)
    middle = [pick(rng, PROBLEMS), pick(rng, MEETINGS)]
    middle += choose(rng, SPEECH, 1 if length < 4 else 3)
    middle += choose(rng, EVENTS, min(length, len(EVENTS)))
    end = [pick(rng, TURNS), pick(rng, ENDINGS)]
    if length < 2:
        return _fill(" ".join(parts + middle[:3] + end[1:]), slots)
    if length < 4:
        return _fill(" ".join(parts) + "\n\n" + " ".join(middle + end), slots)
    half = len(middle) // 2
    paragraphs = [parts, middle[:half], middle[half:], end]
    return _fill("\n\n".join(" ".join(p) for p in paragraphs), slots)


def _fill(text: str, slots: dict[str, str]) -> str:
    return text.format(**slots).replace(" a owl", " an owl").replace("a old ", "an old ")


ASK = (
    "Tell me a {l}story about a {animal} named {name}.",
    "Write a {l}story about a {animal} named {name}.",
    "Can you tell me a {l}story about {name} the {animal}?",
    "Please write a {l}story about a {animal} called {name}.",
)
ASK_ANY = (
    "Tell me a {l}story.",
    "Write a {l}story.",
    "Please tell me a {l}story.",
    "I want to hear a {l}story.",
)


def stories(rng: random.Random) -> Sample:
    """A story on demand, about somebody or about anybody."""
    name, animal, place = person(rng), pick(rng, ANIMALS), pick(rng, PLACES)
    length, word = pick(rng, [(1, "very short "), (1, "short "), (2, "little "), (2, ""), (3, ""), (9, "long ")])
    form = pick(rng, ASK if rng.random() < 0.75 else ASK_ANY)
    question = form.format(l=word, name=name, animal=animal).replace("a owl", "an owl")
    if rng.random() < 0.2:
        question = question.rstrip(".?") + f" in a {place}."
    text = story(rng, name, animal, place, length)
    messages = [user_message(question), assistant_message(text)]
    return Sample("stories", f"stories|{name}|{animal}|{length}", messages, check="ends")


def story_text(rng: random.Random) -> Sample:
    """A story as raw text, cut after a few words."""
    name = person(rng)
    text = story(rng, name, pick(rng, ANIMALS), pick(rng, PLACES), pick(rng, (2, 3, 9, 9)))
    words = text.split(" ")
    cut = len(" ".join(words[:4]))
    return raw("raw_stories", text[:200], text[:cut], text[cut:], check="ends")
