"""What the corpus is made of, and the split between training and held-out samples."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Message = dict[str, Any]
Check = Literal["exact", "json", "tool", "ends"]
T = TypeVar("T")

HELD_OUT_ONE_IN = 20


@dataclass
class Sample:
    """One document: a conversation whose last message is the answer, or raw text.

    `key` names the instance (the numbers added, the values copied, the phrasing of a
    fact): it alone decides whether a sample is for training or held out. A raw sample
    has no messages but a `prompt` and a `completion`.
    """

    task: str
    key: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False
    check: Check = "exact"
    prompt: str = ""
    completion: str = ""
    think: str = "This needs no working."
    learn_prompt: bool = True
    """Whether the prompt of a raw sample is worth learning to write."""

    @property
    def raw(self) -> bool:
        return not self.messages

    @property
    def plain(self) -> bool:
        """A single question and answer that may be put into a longer dialogue."""
        return len(self.messages) == 2 and self.messages[0]["role"] == "user" and not self.tools


Maker = Callable[[random.Random], Sample]


def is_held_out(key: str) -> bool:
    """Whether the instance belongs to the held-out split; stable across runs and machines."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def draw(maker: Maker, rng: random.Random, held_out: bool) -> Sample:
    """Draw from `maker` until a sample of the wanted split comes."""
    while True:
        sample = maker(rng)
        if is_held_out(sample.key) == held_out:
            return sample


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def ask(task: str, key: str, question: str, answer: str, **rest: Any) -> Sample:
    """A sample of one question and one answer."""
    return Sample(task, f"{task}|{key}", [user(question), assistant(answer)], **rest)


def raw(task: str, key: str, prompt: str, completion: str, check: Check = "exact") -> Sample:
    """A sample of plain text, split where evaluation cuts it."""
    return Sample(task, f"{task}|{key}", [], prompt=prompt, completion=completion, check=check)


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """`rng.choice` without its dependence on the Python version."""
    return items[int(rng.random() * len(items))]


def between(rng: random.Random, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def choose(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """`count` different items in random order."""
    left = list(items)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def join_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
