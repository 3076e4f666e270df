"""What is sent: prompts of made-up words, how to sample, and how many at a time or a second."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallm_openai.bench.words import words


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. None leaves a field out of the body; `logprobs` are the top ones of each token."""

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    logprobs: int | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of a body, by OpenAI's names and those that most servers add; without `logprobs`."""
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
        }
        return {name: value for name, value in named.items() if value is not None}

    def __str__(self) -> str:
        parts = [
            f"T={self.temperature:g}" if self.temperature else "greedy",
            *(
                f"{name} {value:g}"
                for name, value in (("top-p", self.top_p), ("top-k", self.top_k), ("min-p", self.min_p))
                if value is not None
            ),
        ]
        said = " ".join(parts)
        return said if self.logprobs is None else f"{said}, logprobs {self.logprobs}"


GREEDY = Sampling()
STANDARD = (GREEDY, Sampling(0.7, top_p=0.95, top_k=20), Sampling(1.0), Sampling(logprobs=5))
"""The ways of sampling that the standard table compares."""


@dataclass(frozen=True)
class Request:
    """One prompt to continue by `max_tokens`. A `long` one is reported apart from the others.

    `tokens`, if there are any, are sent in place of the text.
    """

    prompt: str
    max_tokens: int
    sampling: Sampling = GREEDY
    long: bool = False
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class Load:
    """So many requests, `concurrency` at a time or `rate` a second.

    `prompt_words` is the least and the most of a prompt. `long_prompts` of the requests have `long_words` each
    instead; they are the last of the first `concurrency`, so that the others run beside them. `seed` determines all
    lengths, and together with `text_seed` the words: loads that differ in `text_seed` alone weigh the same, but no
    server knows one's prompts from the other.
    """

    count: int
    concurrency: int = 1
    rate: float | None = None
    max_tokens: int = 64
    prompt_words: tuple[int, int] = (8, 64)
    long_prompts: int = 0
    long_words: int = 4000
    sampling: Sampling = GREEDY
    seed: int = 0
    text_seed: int = 0

    def requests(self) -> list[Request]:
        rng = random.Random(self.seed)
        end = min(self.concurrency, self.count)
        long = range(end - self.long_prompts, end)
        lengths = [self.long_words if place in long else rng.randint(*self.prompt_words) for place in range(self.count)]
        text = iter(words(f"{self.seed}, {self.text_seed}", sum(lengths)))
        return [
            Request(" ".join(next(text) for _ in range(length)), self.max_tokens, self.sampling, place in long)
            for place, length in enumerate(lengths)
        ]
