"""What the blocks of a GGUF tensor stand for: numbers, or MLX's own quantised form if it can hold them.

The blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from parallm_openai.models.gguf.finding import GgufError

Kind = GGMLQuantizationType
# MLX's group of weights that share a scale and a bias: as long as the blocks of all types below.
GROUP = 32
PLAIN = frozenset({Kind.F32, Kind.F16, Kind.BF16})
# Rows are dequantised in runs of about so many numbers: the library needs several times their memory.
CHUNK = 1 << 20


@dataclass(frozen=True)
class Packed:
    """A matrix in MLX's affine form: `value = scale * q + bias`, one scale and bias for every 32 values of a row.

    `weight` is uint32 `[rows, columns * bits / 32]`; `scales` and `biases` are float32 `[rows, columns / 32]`.
    """

    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray


def check_known(kind: Kind) -> None:
    """Raise GgufError if tensors of this type cannot be read; found out by a block of zeros."""
    try:
        dequantised(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError as error:
        raise GgufError(f"its quantisation {kind.name} is not supported") from error


def dequantised(blocks: np.ndarray, kind: Kind) -> np.ndarray:
    """The float32 numbers `[rows, columns]` that blocks `[rows, bytes]` of a type stand for.

    Raises NotImplementedError for a type that is not known.
    """
    values, size = GGML_QUANT_SIZES[kind]
    columns = blocks.shape[1] // size * values
    numbers = np.empty((len(blocks), columns), np.float32)
    step = max(1, CHUNK // columns)

    def fill(at: int) -> None:
        numbers[at : at + step] = dequantize(np.ascontiguousarray(blocks[at : at + step]), kind)

    # numpy computes without the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, len(blocks), step)):
            pass
    return numbers


def bits(kind: Kind) -> int | None:
    """How many bits MLX takes for a weight of this type; None if its form cannot hold the type."""
    return _PACKINGS[kind][0] if kind in _PACKINGS else None


def packed(blocks: np.ndarray, kind: Kind) -> Packed:
    """The same matrix in MLX's form, for a type that `bits` knows. Only scales and biases are computed, in float32."""
    width, unpack = _PACKINGS[kind]
    rows = len(blocks)
    each = blocks.reshape(-1, GGML_QUANT_SIZES[kind][1])
    codes, scales, biases = unpack(each)
    return Packed(_joined(codes.reshape(rows, -1), width), scales.reshape(rows, -1), biases.reshape(rows, -1))


Unpacked = tuple[np.ndarray, np.ndarray, np.ndarray]


def _half(each: np.ndarray, at: int) -> np.ndarray:
    """The float16 number at a byte of every block, `[blocks, 1]`, as float32."""
    return np.ascontiguousarray(each[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed_bytes: np.ndarray) -> np.ndarray:
    """All low halves of a block's bytes, then all high halves."""
    return np.concatenate([packed_bytes & 0xF, packed_bytes >> 4], axis=-1)


def _q4_0(each: np.ndarray) -> Unpacked:
    scale = _half(each, 0)
    return _nibbles(each[:, 2:18]), scale, -8 * scale


def _q4_1(each: np.ndarray) -> Unpacked:
    return _nibbles(each[:, 4:20]), _half(each, 0), _half(each, 2)


def _q5_0(each: np.ndarray) -> Unpacked:
    scale = _half(each, 0)
    return _fifth_bit(each[:, 2:6]) | _nibbles(each[:, 6:22]), scale, -16 * scale


def _q5_1(each: np.ndarray) -> Unpacked:
    return _fifth_bit(each[:, 4:8]) | _nibbles(each[:, 8:24]), _half(each, 0), _half(each, 2)


def _fifth_bit(four_bytes: np.ndarray) -> np.ndarray:
    return np.unpackbits(four_bytes, axis=-1, bitorder="little") << 4


def _q8_0(each: np.ndarray) -> Unpacked:
    scale = _half(each, 0)
    # Signed bytes become unsigned ones, 128 higher.
    return each[:, 2:34] ^ 0x80, scale, -128 * scale


def _q4_k(each: np.ndarray) -> Unpacked:
    scales, biases = _k_scales(each)
    return _k_nibbles(each[:, 16:144]), scales, biases


def _q5_k(each: np.ndarray) -> Unpacked:
    scales, biases = _k_scales(each)
    # Bit n of the 32 bytes belongs to the 32 weights of group n.
    planes = (each[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _k_nibbles(each[:, 48:176]) | planes << 4, scales, biases


def _k_nibbles(packed_bytes: np.ndarray) -> np.ndarray:
    """`[blocks, 8, 32]`: each 32 bytes hold a group in their low halves and the next one in their high halves."""
    halves = packed_bytes.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None]
    return (halves & 0xF).reshape(-1, 8, 32)


def _k_scales(each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and biases of a block's 8 groups, which are 6-bit multiples of the block's own two numbers."""
    low, high, mixed = (each[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([low & 63, (mixed & 0xF) | (low >> 6) << 4], axis=-1)
    minimum = np.concatenate([high & 63, (mixed >> 4) | (high >> 6) << 4], axis=-1)
    return _half(each, 0) * scale, -_half(each, 2) * minimum


_PACKINGS: Mapping[Kind, tuple[int, Callable[[np.ndarray], Unpacked]]] = {
    Kind.Q4_0: (4, _q4_0),
    Kind.Q4_1: (4, _q4_1),
    Kind.Q5_0: (5, _q5_0),
    Kind.Q5_1: (5, _q5_1),
    Kind.Q8_0: (8, _q8_0),
    Kind.Q4_K: (4, _q4_k),
    Kind.Q5_K: (5, _q5_k),
}


def _joined(codes: np.ndarray, width: int) -> np.ndarray:
    """Codes `[rows, columns]` of so many bits each, joined from the lowest bit up into uint32."""
    if width == 8:
        joined = codes
    elif width == 4:
        joined = codes[:, ::2] | codes[:, 1::2] << 4
    else:
        single = np.unpackbits(codes[..., None], axis=-1, count=width, bitorder="little")
        joined = np.packbits(single.reshape(len(codes), -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(joined).view(np.uint32)
