"""Tiny Python functions, asked for in chat and as raw text."""

from __future__ import annotations

import random

from demo_training.sample import Sample, ask, pick, raw

FUNCTIONS: tuple[tuple[str, str, str], ...] = (
    # what it does, its signature, its body
    ("adds two numbers", "add(a, b)", "    return a + b"),
    ("subtracts two numbers", "subtract(a, b)", "    return a - b"),
    ("multiplies two numbers", "multiply(a, b)", "    return a * b"),
    ("divides two numbers", "divide(a, b)", "    return a / b"),
    ("squares a number", "square(x)", "    return x * x"),
    ("says hello", "hello(name)", '    print("Hello, " + name + "!")'),
    ("returns the larger of two numbers", "larger(a, b)", "    if a > b:\n        return a\n    return b"),
    ("returns the smaller of two numbers", "smaller(a, b)", "    if a < b:\n        return a\n    return b"),
    ("checks if a number is even", "is_even(n)", "    return n % 2 == 0"),
    ("checks if a number is odd", "is_odd(n)", "    return n % 2 == 1"),
    ("reverses a string", "reverse(text)", "    return text[::-1]"),
    ("counts the words in a text", "count_words(text)", "    return len(text.split())"),
    (
        "sums a list",
        "total(items)",
        "    result = 0\n    for item in items:\n        result += item\n    return result",
    ),
    (
        "computes the factorial of a number",
        "factorial(n)",
        "    if n <= 1:\n        return 1\n    return n * factorial(n - 1)",
    ),
    (
        "computes the n-th Fibonacci number",
        "fibonacci(n)",
        "    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    ),
    ("returns the last item of a list", "last(items)", "    return items[-1]"),
    ("returns the first item of a list", "first(items)", "    return items[0]"),
    ("makes a text uppercase", "upper(text)", "    return text.upper()"),
    ("computes the mean of a list", "mean(items)", "    return sum(items) / len(items)"),
    ("counts down from a number", "countdown(n)", "    while n > 0:\n        print(n)\n        n -= 1"),
)
ASK = (
    "Write a Python function that {}.",
    "Give me a Python function that {}.",
    "Please write a function that {}.",
    "Python function that {}?",
    "Show me a Python function that {}.",
    "I need a Python function that {}.",
    "Can you write a function that {}?",
    "Write code that {}.",
)


def code(rng: random.Random) -> Sample:
    """A function in a fenced block."""
    what, signature, body = pick(rng, FUNCTIONS)
    question = pick(rng, ASK).format(what)
    return ask("code", question, question, f"```python\ndef {signature}:\n{body}\n```")


def code_text(rng: random.Random) -> Sample:
    """Some functions as a raw file; the last body is to be written."""
    chosen = [pick(rng, FUNCTIONS) for _ in range(1 + int(rng.random() * 4))]
    texts = [f"def {signature}:\n{body}\n" for _, signature, body in chosen]
    _, signature, body = chosen[-1]
    lead = "\n\n".join([*texts[:-1], f"def {signature}:\n"])
    return raw("raw_code", "".join(s for _, s, _ in chosen), lead, body + "\n")
