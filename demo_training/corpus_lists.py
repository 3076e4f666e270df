"""Counting, well-known sequences, and tasks on words and letters."""

from __future__ import annotations

import random

from demo_training.sample import Sample, ask, between, choose, join_words, pick, raw
from demo_training.words import COLORS, FRUITS, WORDS, made_up

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COUNT = ("Count from {} to {}.", "Can you count from {} to {}?", "List the numbers from {} to {}.")
FIXED = {
    "the days of the week": DAYS,
    "the months of the year": MONTHS,
    "the seasons": ["spring", "summer", "autumn", "winter"],
    "the letters of the alphabet": list(LETTERS),
    "the vowels": list("aeiou"),
    "three fruits": ["apple", "banana", "cherry"],
    "five colors": ["red", "green", "blue", "yellow", "purple"],
    "three animals": ["cat", "dog", "horse"],
    "the planets": ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"],
}
NAME_THEM = ("Name {}.", "List {}.", "What are {}?", "Tell me {}.", "Please list {}.", "Can you name {}?")


def counting(rng: random.Random) -> Sample:
    """Count up or down over at most twenty numbers."""
    a = between(rng, 0, 80)
    b = a + between(rng, 2, 19)
    if rng.random() < 0.45:
        a, b = b, a
    step = 1 if b > a else -1
    numbers = ", ".join(str(n) for n in range(a, b + step, step))
    return ask("counting", f"{a}..{b}", pick(rng, COUNT).format(a, b), numbers)


def counting_text(rng: random.Random) -> Sample:
    """A row of numbers in raw text, to be carried on to a round end."""
    a = between(rng, 0, 90)
    shown = between(rng, 3, 5)
    end = a + shown + between(rng, 3, 20)
    end -= end % 10
    if end <= a + shown:
        end += 10
    row = [str(n) for n in range(a, end + 1)]
    return raw("raw_counting", f"{a}", ", ".join(row[:shown]) + ",", " " + ", ".join(row[shown:]))


def sequence(rng: random.Random) -> Sample:
    """Days, months, letters, and what comes after one of them."""
    if rng.random() < 0.5:
        what = pick(rng, list(FIXED))
        style = rng.random()
        question = pick(rng, NAME_THEM).format(what)
        if style < 0.3:
            answer = "\n".join(f"{n}. {item}" for n, item in enumerate(FIXED[what], 1))
            question += " Use a numbered list."
        elif style < 0.5:
            answer = "\n".join(f"- {item}" for item in FIXED[what])
            question += " Use bullet points."
        else:
            answer = ", ".join(FIXED[what])
        return ask("sequence", question, question, answer)
    kind, items = pick(rng, [("day", DAYS), ("month", MONTHS), ("letter", list(LETTERS))])
    here = between(rng, 0, len(items) - 2)
    after = rng.random() < 0.6
    word, other = ("after", here + 1) if after else ("before", here)
    given = items[here] if after else items[here + 1]
    form = pick(rng, ["Which {} comes {} {}?", "What {} comes {} {}?", "What is the {} {} {}?"])
    question = form.format(kind, word, given)
    return ask("sequence", question, question, f"The {kind} {word} {given} is {items[other]}.")


def repeat(rng: random.Random) -> Sample:
    """Say the words of the prompt again."""
    words = [made_up(rng) if rng.random() < 0.2 else pick(rng, WORDS) for _ in range(between(rng, 1, 7))]
    text = " ".join(words)
    form = pick(rng, ["Repeat after me: {}", "Say this: {}", "Repeat: {}", "Please repeat: {}", 'Say "{}".'])
    return ask("repeat", text, form.format(text), text)


def letters(rng: random.Random) -> Sample:
    """Spelling, upper case and first letters of known words."""
    kind = rng.random()
    word = pick(rng, WORDS)
    if kind < 0.4:
        question = pick(rng, ["Spell {}.", "Spell the word {}.", "How do you spell {}?", "Please spell {}."])
        return ask("letters", question.format(word), question.format(word), "-".join(word))
    if kind < 0.75:
        text = " ".join(choose(rng, WORDS, between(rng, 1, 2)))
        form = pick(rng, ["Write {} in uppercase.", "Uppercase: {}", "Put this in capital letters: {}"])
        return ask("letters", f"upper {text}", form.format(text), text.upper())
    question = pick(rng, ["What is the first letter of {}?", "Which letter does {} start with?"]).format(word)
    return ask("letters", question, question, f"The first letter of {word} is {word[0]}.")


def pick_list(rng: random.Random) -> Sample:
    """Write the items of the prompt as a list, first or last of them, or how many there are."""
    items = choose(rng, FRUITS + COLORS, between(rng, 2, 5))
    listed, kind = join_words(items), between(rng, 0, 3)
    questions = (
        f"Make a numbered list of {listed}.",
        f"Make a bullet list of {listed}.",
        f"Which comes first: {listed}?",
        f"How many items are in this list: {listed}?",
    )
    answers = (
        "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1)),
        "\n".join(f"- {item}" for item in items),
        items[0],
        f"There are {len(items)} items in the list.",
    )
    return ask("lists", f"{kind} {listed}", questions[kind], answers[kind])
