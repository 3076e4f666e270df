"""JSON: values copied from the prompt into objects and arrays, compact or indented."""

from __future__ import annotations

import json
import random
from typing import Any

from demo_training.sample import Sample, ask, between, choose, join_words, pick
from demo_training.words import COLORS, FRUITS, JOBS, THINGS, city, made_up, person

Field = tuple[str, Any, str]
"""A key, its value, and a clause that tells it."""


def _person_fields(rng: random.Random) -> tuple[str, list[Field]]:
    name = person(rng)
    age, town, job = between(rng, 5, 95), city(rng), pick(rng, JOBS)
    color, surname = pick(rng, COLORS), made_up(rng)
    fields: list[Field] = [
        ("age", age, f"is {age} years old"),
        ("city", town, f"lives in {town}"),
        ("job", job, f"works as a {job}"),
        ("color", color, f"likes {color}"),
        ("surname", surname, f"has the surname {surname}"),
        ("student", True, "is a student"),
        ("email", f"{name.lower()}@example.com", f"has the email {name.lower()}@example.com"),
    ]
    return name, [("name", name, ""), *choose(rng, fields, between(rng, 1, 3))]


def _thing_fields(rng: random.Random) -> tuple[str, list[Field]]:
    thing = pick(rng, THINGS)
    price, count, color = between(rng, 1, 200), between(rng, 0, 60), pick(rng, COLORS)
    stocked = rng.random() < 0.5
    fields: list[Field] = [
        ("price", price, f"costs {price} euros"),
        ("color", color, f"is {color}"),
        ("quantity", count, f"is there {count} times"),
        ("in_stock", stocked, "is in stock" if stocked else "is not in stock"),
    ]
    return f"The {thing}", [("item", thing, ""), *choose(rng, fields, between(rng, 1, 3))]


def _sentence(subject: str, fields: list[Field]) -> str:
    return f"{subject} {join_words([clause for _, _, clause in fields if clause])}."


def _dump(value: Any, indented: bool) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2 if indented else None)


def json_object(rng: random.Random) -> Sample:
    """An object from a sentence: all of it, or the keys the prompt names."""
    subject, fields = (_person_fields if rng.random() < 0.65 else _thing_fields)(rng)
    sentence = _sentence(subject, fields)
    indented = rng.random() < 0.25
    ending = pick(rng, [" Indent it.", " Use indentation.", " Pretty-print it."]) if indented else ""
    if rng.random() < 0.5:
        form = pick(
            rng,
            [
                "Turn this into JSON: {}",
                "Convert to JSON: {}",
                "Write this as JSON: {}",
                "Make a JSON object from this sentence: {}",
            ],
        )
        question = form.format(sentence) + ending
    else:
        wanted = choose(rng, fields, between(rng, 1, len(fields)))
        fields = wanted
        form = pick(
            rng,
            [
                "Answer in JSON with the keys {1}. {0}",
                "Give me JSON with the keys {1}. {0}",
                "{0} Reply with a JSON object with the keys {1}.",
            ],
        )
        question = form.format(sentence, join_words([key for key, _, _ in wanted])) + ending
    answer = _dump({key: value for key, value, _ in fields}, indented)
    return ask("json", sentence, question, answer, check="json")


def json_short(rng: random.Random) -> Sample:
    """An object from values that the prompt only lists."""
    _, fields = (_person_fields if rng.random() < 0.7 else _thing_fields)(rng)
    fields = [field for field in fields if not isinstance(field[1], bool)]
    indented = rng.random() < 0.25
    keys = join_words([key for key, _, _ in fields])
    values = ", ".join(str(value) for _, value, _ in fields)
    form = pick(
        rng,
        [
            "Give me JSON with the {0}: {1}.",
            "Give me JSON with the {0} of {1}.",
            "Make JSON with {0} from {1}.",
            "Write a JSON object with {0}: {1}.",
        ],
    )
    question = form.format(keys, values) + (" Indent it." if indented else "")
    answer = _dump({key: value for key, value, _ in fields}, indented)
    return ask("json", f"{keys}:{values}", question, answer, check="json")


def json_array(rng: random.Random) -> Sample:
    """An array of strings, numbers or objects."""
    count = between(rng, 2, 5)
    kind = rng.random()
    items: list[Any]
    if kind < 0.35:
        items = choose(rng, FRUITS + COLORS, count)
        listed = join_words(items)
    elif kind < 0.6:
        items = [between(rng, 0, 99) for _ in range(count)]
        listed = join_words([str(item) for item in items])
    elif kind < 0.8:
        names = [person(rng) for _ in range(count)]
        items, listed = list(names), join_words(names)
    else:
        pairs = [(person(rng), between(rng, 5, 95)) for _ in range(between(rng, 2, 3))]
        items = [{"name": name, "age": age} for name, age in pairs]
        listed = join_words([f"{name} ({age})" for name, age in pairs])
        form = pick(rng, ["Make a JSON array of people: {}.", "JSON array with name and age: {}."])
        return ask("json", listed, form.format(listed), _dump(items, False), check="json")
    form = pick(rng, ["Make a JSON array of {}.", "Give me a JSON list with {}.", "JSON array: {}."])
    return ask("json", listed, form.format(listed), _dump(items, False), check="json")


def any_json(rng: random.Random) -> Sample:
    """One of the JSON tasks."""
    kind = rng.random()
    return (json_object if kind < 0.45 else json_short if kind < 0.7 else json_array)(rng)
