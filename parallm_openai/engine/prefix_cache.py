"""What past sequences have read, for requests that begin with the same tokens.

A chat sends its whole history with every turn, and many requests the same system prompt. The
keys and values of a token depend on nothing but the tokens before it, so a new row starts with a copy of
the longest beginning that it shares with a kept sequence and reads only the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallm_openai.engine.kv_cache import RaggedCache

# A shorter beginning is as soon read as copied.
LEAST_TOKENS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """One kept sequence: caches of a single row each; `draft` is None if the drafter has not read it.

    Only requests of the same `salt` may know of it.
    """

    tokens: np.ndarray
    target: RaggedCache
    draft: RaggedCache | None = None
    salt: str = ""


class PrefixCache:
    """Kept sequences, the least recently used first; those that came latest to use stay.

    The budget is in tokens.
    """

    def __init__(self) -> None:
        self._kept: list[Prefix] = []
        self.hits = 0
        self.hit_tokens = 0

    def find(self, tokens: Sequence[int], salt: str = "") -> tuple[Prefix | None, int]:
        """The kept sequence that shares the longest beginning with `tokens`, and that beginning's length.

        At least `LEAST_TOKENS` or none, and never all of `tokens`: a row's last token is read when it decodes.
        """
        best, length = self._longest(tokens[:-1], salt)
        if best is None:
            return None, 0
        self._kept.remove(best)
        self._kept.append(best)
        self.hits += 1
        self.hit_tokens += length
        return best, length

    def known(self, tokens: Sequence[int], salt: str = "") -> int:
        """How long a beginning `find` would find."""
        return self._longest(tokens[:-1], salt)[1]

    def _longest(self, tokens: Sequence[int], salt: str = "") -> tuple[Prefix | None, int]:
        beginnings = [common_beginning(tokens, prefix.tokens) if prefix.salt == salt else 0 for prefix in self._kept]
        best = max(range(len(beginnings)), key=beginnings.__getitem__, default=None)
        if best is None or not beginnings[best]:
            return None, 0
        return self._kept[best], beginnings[best]

    def has_room(self, tokens: Sequence[int], budget: int) -> bool:
        """Whether a sequence is neither too short nor too long to be kept."""
        return LEAST_TOKENS <= len(tokens) <= budget

    def wants(self, tokens: Sequence[int], budget: int, salt: str = "") -> bool:
        """Whether a sequence is worth a copy: one that there is room for and that is not kept already."""
        return self.has_room(tokens, budget) and self._longest(tokens, salt)[1] < len(tokens)

    def keep(self, prefix: Prefix, budget: int) -> None:
        """Add a sequence in the place of those that it continues; older ones make room for it."""
        self._kept = [
            old
            for old in self._kept
            if old.salt != prefix.salt or common_beginning(old.tokens, prefix.tokens) < len(old.tokens)
        ]
        self._kept.append(prefix)
        self.fit(budget)

    def fit(self, budget: int) -> None:
        """Forget the least recently used until the rest is within the budget."""
        while self._kept and self.tokens > budget:
            self._kept.pop(0)

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return sum(len(prefix.tokens) for prefix in self._kept)

    def report(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"sequences": len(self._kept), "tokens": self.tokens, "hits": self.hits, "hit_tokens": self.hit_tokens}


def common_beginning(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """How many tokens two sequences have in common at their beginning; 0 where those are too few to matter."""
    if list(a[:LEAST_TOKENS]) != list(b[:LEAST_TOKENS]):
        return 0
    length = min(len(a), len(b))
    differing = np.flatnonzero(np.asarray(a[:length]) != np.asarray(b[:length]))
    same = int(differing[0]) if len(differing) else length
    return same if same >= LEAST_TOKENS else 0
