"""One place in a sequence whose token is to be sampled, and all that decides how. Imports no MLX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from parallm_openai.engine.constraint import Mask
from parallm_openai.engine.request import SamplingParams

# Streams of noise at one place: the target's token, the draft's own, and the draft's acceptance.
TOKEN_STREAM, DRAFT_STREAM, ACCEPTANCE_STREAM = range(3)


@dataclass(slots=True)
class TokenHistory:
    """What penalties look at: the prompt's tokens and how often each was generated."""

    prompt: frozenset[int]
    generated: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, prompt: Iterable[int]) -> TokenHistory:
        return cls(frozenset(prompt))


@dataclass(frozen=True, slots=True)
class Position:
    """One place to sample: the `index`-th generated token of a request, after `drafts`.

    `drafts` are the drafted tokens between the request's committed ones and this place;
    `allowed` is what its grammar lets follow them.
    `stream` tells draws for different purposes at one place apart.
    """

    params: SamplingParams
    seed: int
    index: int
    history: TokenHistory | None = None
    drafts: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    allowed: Mask | None = None
    stream: int = TOKEN_STREAM
