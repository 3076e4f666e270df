"""What the engine needs of a grammar: which tokens may come next, for each row by itself."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Mask = np.ndarray[Any, np.dtype[np.uint32]]
"""One bit a token, 32 to a word, the lowest bit first: 1 may come, 0 may not. `mask_words` of the vocabulary long."""


def mask_words(vocab_size: int) -> int:
    """The length of every mask over a vocabulary: masks of different grammars are stacked."""
    return (vocab_size + 31) // 32


class Matcher(Protocol):
    """How far one sequence has come in its grammar."""

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can follow."""

    @property
    def error(self) -> str | None:
        """What went wrong, if anything did: the sequence cannot go on."""

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        """The tokens that may follow the committed ones and `drafts`.

        None after a draft that the grammar forbids: it is rejected, and so is what follows it.
        """

    def advance(self, token: int) -> None:
        """Commit one token."""


class Grammar(Protocol):
    """A compiled grammar, shared by any number of sequences."""

    def matcher(self) -> Matcher:
        """A matcher at the grammar's beginning."""
