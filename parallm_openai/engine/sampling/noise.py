"""The noise of sampled tokens: a function of (seed, index, token id), so that any few tokens' can be had alone.

Gumbel noise is made top down, block by block (Maddison et al., "A* Sampling", 2014). The largest noise of a block of n
tokens is Gumbel noise too, raised by log n, at a place that is uniform. Given that, the others are Gumbel noise that is
cut off there. So the largest noise of each block is cheap to know, and it bounds what the block's tokens can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import mlx.core as mx
import numpy as np

from parallm_openai.engine.position import TOKEN_STREAM, Position

BLOCK = 16
_WORD = 0xFFFFFFFF
# Tells the keys of a block's largest noise and of its tokens' apart.
_WITHIN = 0x80000000


def noise_key(seed: int, index: int, stream: int = TOKEN_STREAM) -> tuple[int, int]:
    """The 64-bit Threefry key of a request's `index`-th token; seeds are scattered by SplitMix64."""
    mixed = (seed + (stream + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    mixed ^= mixed >> 31
    return mixed & _WORD, ((mixed >> 32) + index) & _WORD


def keys_of(positions: Sequence[Position]) -> mx.array:
    """The positions' keys `[len(positions), 2]`."""
    keys = [noise_key(p.seed, p.index, p.stream) for p in positions]
    return mx.array(np.array(keys, dtype=np.uint32).reshape(-1, 2))


def uniform_noise(positions: Sequence[Position]) -> mx.array:
    """One number in [0, 1) a position, from its own key."""
    return mx.vmap(lambda key: mx.random.uniform(key=key))(keys_of(positions))


def largest_noise(keys: mx.array, blocks: mx.array) -> mx.array:
    """The largest noise of each of the `blocks` `[rows, n]`, by their numbers."""
    drawn = mx.vmap(lambda key: mx.random.gumbel((), key=key))(_block_keys(keys, blocks, 0))
    return drawn.reshape(blocks.shape) + log(BLOCK)


def block_noise(keys: mx.array, blocks: mx.array, largest: mx.array) -> mx.array:
    """The noise of all tokens of the `blocks`, `[rows, n, BLOCK]`, given the largest of each."""
    drawn = mx.vmap(lambda key: mx.random.uniform(shape=(BLOCK + 1,), key=key))(_block_keys(keys, blocks, _WITHIN))
    drawn = drawn.reshape(*blocks.shape, BLOCK + 1)
    return _below(drawn[..., :BLOCK], drawn[..., BLOCK:], largest[..., None])


def _cut_off(uniform: mx.array, place: mx.array, largest: mx.array) -> mx.array:
    """Gumbel noise below `largest`, by inversion: exp(-g) = exp(-largest) - log u; at `place` the largest itself."""
    at_place = mx.floor(place * BLOCK) == mx.arange(BLOCK)
    return mx.where(at_place, largest, -mx.log(mx.exp(-largest) - mx.log(uniform)))


_below = mx.compile(_cut_off)


def token_noise(keys: mx.array, tokens: mx.array) -> mx.array:
    """The noise of the `tokens` `[rows, n]`, by their ids."""
    blocks = tokens // BLOCK
    within = block_noise(keys, blocks, largest_noise(keys, blocks))
    return mx.take_along_axis(within, (tokens % BLOCK)[..., None], axis=-1)[..., 0]


def gumbel_noise(keys: mx.array, vocab_size: int) -> mx.array:
    """The noise of the whole vocabulary, `[rows, vocab_size]`."""
    blocks = all_blocks(keys.shape[0], vocab_size)
    noise = block_noise(keys, blocks, largest_noise(keys, blocks))
    return noise.reshape(keys.shape[0], -1)[:, :vocab_size]


def all_blocks(rows: int, vocab_size: int) -> mx.array:
    return mx.broadcast_to(mx.arange(-(-vocab_size // BLOCK), dtype=mx.uint32)[None], (rows, -(-vocab_size // BLOCK)))


def _block_keys(keys: mx.array, blocks: mx.array, part: int) -> mx.array:
    first = keys[:, :1] ^ blocks.astype(mx.uint32)
    second = mx.broadcast_to(keys[:, 1:] ^ mx.array(part, dtype=mx.uint32), first.shape)
    return mx.stack([first, second], axis=-1).reshape(-1, 2)
