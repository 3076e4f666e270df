"""Prefixes that rows have computed, stored for later rows that begin with the same tokens.

A chat sends its whole history with every turn, and many requests the same system prompt. The keys and values of a
token depend only on the tokens before it, so a new row starts with a copy of the longest stored prefix and computes
the rest. A recurrent layer's state is that of one length: such a row starts after a length whose state was kept.
Imports no MLX.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallm_openai.engine.cache.blocks import BLOCK_TOKENS, BlockHashes, BlockIndex
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.row import TARGET

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

    `hashes` are those of its full blocks; `size` is what it takes of the budget: its tokens, and as many as would take
    as much memory as its states.
    """

    tokens: array[int]
    hashes: tuple[bytes, ...]
    rows: Mapping[str, StoredRow]
    size: int

    @classmethod
    def of(cls, tokens: Sequence[int], blocks: BlockHashes, rows: Mapping[str, StoredRow]) -> Prefix:
        size = len(tokens) + sum(stored.cache.state_tokens for stored in rows.values())
        return cls(array("i", tokens), tuple(full_blocks(blocks, tokens)), rows, size)

    def beginning(self, length: int) -> int:
        """The most of its first `length` tokens that a row can start with."""
        stored = self.rows.get(TARGET)
        return length if stored is None else stored.cache.beginning(0, length)


@dataclass(frozen=True, slots=True)
class Match:
    """The stored prefix that spares a sequence the most tokens, and how many; at least `SHORTEST_PREFIX`, or none.

    `common` is how many tokens the sequence has in common with a stored one, which may be more.
    """

    prefix: Prefix | None = None
    length: int = 0
    common: int = 0


def full_blocks(blocks: BlockHashes, tokens: Sequence[int]) -> list[bytes]:
    """The hashes of the blocks that `tokens` fill; `blocks` may have those of a longer sequence already."""
    return blocks.update(tokens)[: len(tokens) // BLOCK_TOKENS]


class PrefixCache:
    """Stored prefixes, the least recently used first. Its budget is in tokens: see `Prefix.size`."""

    def __init__(self) -> None:
        self._stored: dict[Prefix, None] = {}
        self._index: BlockIndex[Prefix] = BlockIndex()
        self.size = 0
        self.hits = 0
        self.hit_tokens = 0

    def match(self, tokens: Sequence[int], blocks: BlockHashes) -> Match:
        """What is stored of the beginning of `tokens`."""
        hashes = full_blocks(blocks, tokens)
        depth = self._index.depth(hashes)
        if not depth:
            return Match()
        start, end = depth * BLOCK_TOKENS, (depth + 1) * BLOCK_TOKENS
        tail = tokens[start:end]
        alike = self._index.items(hashes[depth - 1])
        commons = {prefix: start + _common(prefix.tokens[start:end], tail) for prefix in alike}
        common = max(commons.values())
        lengths = {prefix: prefix.beginning(own) for prefix, own in commons.items()}
        if max(lengths.values()) < common:
            # Of one that has less in common, a later state may be kept.
            for prefix in self._index.items(hashes[0]):
                if prefix not in lengths:
                    lengths[prefix] = prefix.beginning(BLOCK_TOKENS * _common_blocks(prefix.hashes, hashes))
        prefix, length = max(lengths.items(), key=lambda found: found[1])
        return Match(prefix, length, common) if length >= SHORTEST_PREFIX else Match(common=common)

    def use(self, prefix: Prefix, length: int) -> None:
        """Count that a row starts with the first `length` tokens of a prefix, which thereby is the latest used."""
        self.hits += 1
        self.hit_tokens += length
        if prefix in self._stored:
            del self._stored[prefix]
            self._stored[prefix] = None

    def should_store(self, tokens: Sequence[int], blocks: BlockHashes, budget: int) -> bool:
        """Whether a sequence is worth a copy: it fits the budget, and no stored one begins with it."""
        return fits(tokens, budget) and self.match(tokens, blocks).length < len(tokens)

    def store(self, prefix: Prefix, budget: int) -> None:
        """Add a prefix in the place of those that it continues; the least recently used make room for it."""
        if prefix.size > budget:
            return
        for stored in [stored for stored in self._stored if _continues(prefix, stored)]:
            self._evict(stored)
        self._stored[prefix] = None
        self._index.add(prefix, prefix.hashes)
        self.size += prefix.size
        self.evict_to(budget)

    def evict_to(self, budget: int) -> None:
        """Evict the least recently used until the rest is within the budget."""
        while self.size > budget:
            self._evict(next(iter(self._stored)))

    def _evict(self, prefix: Prefix) -> None:
        del self._stored[prefix]
        self._index.remove(prefix, prefix.hashes)
        self.size -= prefix.size

    def report(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sequences": len(self._stored),
            "tokens": sum(len(prefix.tokens) for prefix in self._stored),
            "hits": self.hits,
            "hit_tokens": self.hit_tokens,
        }


def fits(tokens: Sequence[int], budget: int) -> bool:
    """Whether a sequence is neither too short nor too long to be stored."""
    return SHORTEST_PREFIX <= len(tokens) <= budget


def _continues(prefix: Prefix, stored: Prefix) -> bool:
    count = len(stored.hashes)
    if stored.hashes[-1:] != prefix.hashes[count - 1 : count]:
        return False
    tail = stored.tokens[count * BLOCK_TOKENS :]
    return prefix.tokens[count * BLOCK_TOKENS :][: len(tail)] == tail


def _common_blocks(a: Sequence[bytes], b: Sequence[bytes]) -> int:
    """How many blocks two sequences have in common: a block's hash covers those before it."""
    return bisect(range(min(len(a), len(b))), 0, key=lambda place: int(a[place] != b[place]))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    shorter = min(len(a), len(b))
    return next((place for place in range(shorter) if a[place] != b[place]), shorter)
