"""Prefixes that rows have computed, stored for later rows that begin with the same tokens.

A chat sends its whole history with every turn, and many requests the same system prompt. The keys and values of a
token depend only on the tokens before it, so a new row starts with a copy of the longest stored prefix and computes
the rest. Imports no MLX.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallm_openai.engine.cache.blocks import BLOCK_TOKENS, BlockHashes, BlockIndex
from parallm_openai.engine.cache.protocol import BatchCache

# A shorter prefix is as soon computed as copied.
SHORTEST_PREFIX = 32


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A model's cache of one row, and how many of the prefix's tokens it holds."""

    cache: BatchCache
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A stored sequence and what each model has computed of it, by the model's role.

    `hashes` are those of its full blocks.
    """

    tokens: array[int]
    hashes: tuple[bytes, ...]
    rows: Mapping[str, StoredRow]

    @classmethod
    def of(cls, tokens: Sequence[int], blocks: BlockHashes, rows: Mapping[str, StoredRow]) -> Prefix:
        return cls(array("i", tokens), tuple(full_blocks(blocks, tokens)), rows)


def full_blocks(blocks: BlockHashes, tokens: Sequence[int]) -> list[bytes]:
    """The hashes of the blocks that `tokens` fill; `blocks` may have those of a longer sequence already."""
    return blocks.update(tokens)[: len(tokens) // BLOCK_TOKENS]


class PrefixCache:
    """Stored prefixes, the least recently used first. Its budget is in tokens."""

    def __init__(self) -> None:
        self._stored: dict[Prefix, None] = {}
        self._index: BlockIndex[Prefix] = BlockIndex()
        self.tokens = 0
        self.hits = 0
        self.hit_tokens = 0

    def match(self, tokens: Sequence[int], blocks: BlockHashes) -> tuple[Prefix | None, int]:
        """The stored prefix that has the longest beginning in common with `tokens`, and how long that is.

        At least `SHORTEST_PREFIX` tokens, or None.
        """
        hashes = full_blocks(blocks, tokens)
        depth = self._index.depth(hashes)
        if not depth:
            return None, 0
        start, end = depth * BLOCK_TOKENS, (depth + 1) * BLOCK_TOKENS
        tail = tokens[start:end]
        alike = self._index.items(hashes[depth - 1])
        lengths = {prefix: start + _common(prefix.tokens[start:end], tail) for prefix in alike}
        prefix, length = max(lengths.items(), key=lambda found: found[1])
        return (prefix, length) if length >= SHORTEST_PREFIX else (None, 0)

    def use(self, prefix: Prefix, length: int) -> None:
        """Count that a row starts with the first `length` tokens of a prefix, which thereby is the latest used."""
        self.hits += 1
        self.hit_tokens += length
        if prefix in self._stored:
            del self._stored[prefix]
            self._stored[prefix] = None

    def should_store(self, tokens: Sequence[int], blocks: BlockHashes, budget: int) -> bool:
        """Whether a sequence is worth a copy: it fits the budget, and no stored one begins with it."""
        return fits(tokens, budget) and self.match(tokens, blocks)[1] < len(tokens)

    def store(self, prefix: Prefix, budget: int) -> None:
        """Add a prefix in the place of those that it continues; the least recently used make room for it."""
        for stored in [stored for stored in self._stored if _continues(prefix, stored)]:
            self._evict(stored)
        self._stored[prefix] = None
        self._index.add(prefix, prefix.hashes)
        self.tokens += len(prefix.tokens)
        self.evict_to(budget)

    def evict_to(self, budget: int) -> None:
        """Evict the least recently used until the rest is within the budget."""
        while self.tokens > budget:
            self._evict(next(iter(self._stored)))

    def _evict(self, prefix: Prefix) -> None:
        del self._stored[prefix]
        self._index.remove(prefix, prefix.hashes)
        self.tokens -= len(prefix.tokens)

    def report(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"sequences": len(self._stored), "tokens": self.tokens, "hits": self.hits, "hit_tokens": self.hit_tokens}


def fits(tokens: Sequence[int], budget: int) -> bool:
    """Whether a sequence is neither too short nor too long to be stored."""
    return SHORTEST_PREFIX <= len(tokens) <= budget


def _continues(prefix: Prefix, stored: Prefix) -> bool:
    count = len(stored.hashes)
    if stored.hashes[-1:] != prefix.hashes[count - 1 : count]:
        return False
    tail = stored.tokens[count * BLOCK_TOKENS :]
    return prefix.tokens[count * BLOCK_TOKENS :][: len(tail)] == tail


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    shorter = min(len(a), len(b))
    return next((place for place in range(shorter) if a[place] != b[place]), shorter)
