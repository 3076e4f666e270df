"""Sums: small ones answered at once, larger ones worked out in a `<think>` block."""

from __future__ import annotations

import random

from demo_training.sample import Sample, assistant, between, is_held_out, pick, raw, user

ASK = (
    "What is {}?",
    "What's {}?",
    "Calculate {}.",
    "Compute {}.",
    "{} = ?",
    "How much is {}?",
    "Please calculate {}.",
    "Can you work out {}?",
    "{}",
)
BARE = ("What is {}? Answer with just the number.", "{} = ? Only the number, please.")


def expression(rng: random.Random) -> tuple[str, int, str]:
    """A sum within reach without working: its text, its value, and its held-out key."""
    kind = rng.random()
    if kind < 0.45:
        a, b = between(rng, 0, 99), between(rng, 0, 99)
        return f"{a} + {b}", a + b, f"sum|{a}+{b}"
    if kind < 0.8:
        a, b = between(rng, 0, 99), between(rng, 0, 99)
        a, b = max(a, b), min(a, b)
        return f"{a} - {b}", a - b, f"sum|{a}-{b}"
    a, b = between(rng, 0, 10), between(rng, 0, 10)
    return f"{a} * {b}", a * b, ""


def spoken(text: str, rng: random.Random) -> str:
    """Now and then the words instead of the signs."""
    if rng.random() < 0.8:
        return text
    return text.replace("+", "plus").replace("-", "minus").replace("*", "times")


def arithmetic(rng: random.Random) -> Sample:
    """One short sum. A times table cannot be guessed, so there the phrasing is held out."""
    text, value, key = expression(rng)
    said = spoken(text, rng)
    form = pick(rng, BARE if rng.random() < 0.15 else ASK)
    answer = str(value) if form in BARE else f"{text} = {value}"
    question = form.format(said)
    return Sample("arithmetic", key or question, [user(question), assistant(answer)])


def sums_text(rng: random.Random) -> Sample:
    """Lines of sums as raw text; the last one is the question."""
    lines: list[str] = []
    wanted = between(rng, 3, 12)
    while len(lines) < wanted:
        text, value, key = expression(rng)
        if not (key and is_held_out(key)):
            lines.append(f"{text} = {value}\n")
    text, value, key = expression(rng)
    sample = raw("raw_sums", text, "".join(lines) + text + " =", f" {value}\n")
    sample.key = key or sample.key
    return sample


def _add_steps(a: int, b: int) -> str:
    lines, carry = [], 0
    for x, y in zip(reversed(f"{a:03d}"), reversed(f"{b:03d}"), strict=True):
        total = int(x) + int(y) + carry
        middle = f" + {carry}" if carry else ""
        carry = total // 10
        lines.append(f"{x} + {y}{middle} = {total}, write {total % 10}, carry {carry}")
    return "\n".join(lines)


def _subtract_steps(a: int, b: int) -> str:
    lines, borrow = [], 0
    for x, y in zip(reversed(f"{a:03d}"), reversed(f"{b:03d}"), strict=True):
        top = int(x) - borrow
        taken = top < int(y)
        minus = f" - {borrow}" if borrow else ""
        plus = " + 10" if taken else ""
        digit = top + (10 if taken else 0) - int(y)
        borrow = int(taken)
        lines.append(f"{x}{minus}{plus} - {y} = {digit}, borrow {borrow}")
    return "\n".join(lines)


def _multiply_steps(a: int, b: int) -> str:
    lines, carry = [], 0
    for x in reversed(str(a)):
        product = int(x) * b
        total = product + carry
        middle = f", {product} + {carry} = {total}" if carry else ""
        carry = total // 10
        lines.append(f"{x} * {b} = {product}{middle}, write {total % 10}, carry {carry}")
    return "\n".join(lines)


def reasoning(rng: random.Random) -> Sample:
    """A sum of two or three digits, worked column by column before the answer."""
    kind = rng.random()
    if kind < 0.45:
        a, b = between(rng, 10, 999), between(rng, 10, 999)
        text, value, steps = f"{a} + {b}", a + b, _add_steps(a, b)
    elif kind < 0.8:
        a, b = between(rng, 10, 999), between(rng, 10, 999)
        a, b = max(a, b), min(a, b)
        text, value, steps = f"{a} - {b}", a - b, _subtract_steps(a, b)
    else:
        a, b = between(rng, 10, 99), between(rng, 2, 9)
        text, value, steps = f"{a} * {b}", a * b, _multiply_steps(a, b)
    question = pick(rng, ASK).format(spoken(text, rng))
    messages = [user(question), assistant(f"{text} = {value}")]
    return Sample("reasoning", f"sum|{text.replace(' ', '')}", messages, thinking=True, think=steps)
