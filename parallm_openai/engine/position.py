"""One place in a sequence whose token is to be sampled, and all that decides how. Imports no MLX."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from parallm_openai.engine.constraint import Mask
from parallm_openai.engine.request import SamplingParams

# Streams of noise at one place: the target's token, the draft's own, and the draft's acceptance.
TOKEN_STREAM, DRAFT_STREAM, ACCEPTANCE_STREAM = range(3)


class TokenHistory:
    """What penalties look at: the tokens of a prompt, and how often each token was generated."""

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._tokens = array("i", self._places)
        self._counts = array("f", bytes(4 * len(self._places)))

    def add(self, token: int) -> None:
        """Count a generated token."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            self._tokens.append(token)
            self._counts.append(0)
        self._counts[place] += 1

    def counts(self, drafts: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all tokens, and how often each was generated if `drafts` come next."""
        tokens, counts = np.array(self._tokens), np.array(self._counts)
        new: dict[int, float] = {}
        for token in drafts:
            place = self._places.get(token)
            if place is None:
                new[token] = new.get(token, 0) + 1
            else:
                counts[place] += 1
        if not new:
            return tokens, counts
        return np.append(tokens, list(new)).astype(np.int32), np.append(counts, list(new.values())).astype(np.float32)


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
