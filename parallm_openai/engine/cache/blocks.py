"""Finds sequences that begin alike, by hashes of their blocks of tokens.

The hash of a block covers all tokens before it too, as in vLLM's prefix caching: two sequences have a block's hash in
common only if they agree up to the end of that block. A row hashes each of its tokens once.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

BLOCK_TOKENS = 16
HASH_BYTES = 16

T = TypeVar("T")


class BlockHashes:
    """The hashes of a growing sequence's full blocks; sequences of different `salt` have none in common."""

    def __init__(self, salt: str = "") -> None:
        self._root = blake2b(salt.encode(), digest_size=HASH_BYTES).digest()
        self.hashes: list[bytes] = []

    def update(self, tokens: Sequence[int]) -> list[bytes]:
        """The hashes of all full blocks of `tokens`, which continue those of the last call."""
        for start in range(len(self.hashes) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            before = self.hashes[-1] if self.hashes else self._root
            block = array("i", tokens[start : start + BLOCK_TOKENS]).tobytes()
            # Not Python's own hash: somebody who makes two sequences collide would be served another's prefix.
            self.hashes.append(blake2b(before + block, digest_size=HASH_BYTES).digest())
        return self.hashes


class BlockIndex(Generic[T]):
    """Items by the hash of each of their blocks."""

    def __init__(self) -> None:
        self._items: dict[bytes, dict[T, None]] = {}

    def add(self, item: T, hashes: Sequence[bytes]) -> None:
        for key in hashes:
            self._items.setdefault(key, {})[item] = None

    def remove(self, item: T, hashes: Sequence[bytes]) -> None:
        for key in hashes:
            del self._items[key][item]
            if not self._items[key]:
                del self._items[key]

    def depth(self, hashes: Sequence[bytes]) -> int:
        """How many of these blocks, the first of a sequence, an item has in common with it."""
        low, high = 0, len(hashes)
        # Who has a block has all those before it.
        while low < high:
            middle = (low + high + 1) // 2
            if hashes[middle - 1] in self._items:
                low = middle
            else:
                high = middle - 1
        return low

    def items(self, key: bytes) -> Collection[T]:
        return self._items.get(key, {}).keys()
