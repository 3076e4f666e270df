"""Read a GGUF file's header: its metadata, and where its tensors lie.

Every length is compared with what is left of the file before anything is made of it. The `gguf` package's own reader
does not do that, and makes an array for each of a vocabulary's tokens.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from parallm_openai.models.gguf.finding import MAGIC, GgufError

VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

_NUMBERS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_COUNT, _CODE = struct.Struct("<Q"), struct.Struct("<I")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file. `shape` has the outermost axis first; a row is one run of the innermost."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        values, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // values * size

    @property
    def end(self) -> int:
        return self.start + self.rows * self.row_bytes


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's header. Metadata are numbers, texts, lists of texts, and numpy arrays of numbers."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    _data: mmap.mmap

    def blocks(self, tensor: Tensor) -> np.ndarray:
        """The tensor's bytes as they lie in the file, `[rows, row_bytes]`; read as they are used."""
        size = tensor.end - tensor.start
        flat = np.frombuffer(self._data, np.uint8, size, tensor.start)
        return flat.reshape(tensor.rows, tensor.row_bytes)


def read(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises GgufError if the file is cut off or damaged, or of another version, and OSError if it cannot be read.
    """
    with path.open("rb") as opened:
        try:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise GgufError("the file is empty") from error
    cursor = _Cursor(data)
    tensor_count, field_count = _counts(cursor)
    metadata = _metadata(cursor, field_count)
    tensors = _tensors(cursor, tensor_count, _alignment(metadata))
    return GgufFile(path, metadata, tensors, data)


class _Cursor:
    """Reads a file from its begin, never beyond its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.size = len(data)
        self.at = 0

    def take(self, size: int) -> bytes:
        begin = self.at
        self.skip(size)
        return self._data[begin : self.at]

    def skip(self, size: int) -> None:
        if size > self.size - self.at:
            raise GgufError(
                f"it is cut off or damaged: {size} bytes should follow byte {self.at}, and the file ends at {self.size}"
            )
        self.at += size

    def count(self) -> int:
        return int(_COUNT.unpack(self.take(8))[0])

    def code(self) -> int:
        return int(_CODE.unpack(self.take(4))[0])

    def text(self) -> str:
        return self.take(self.count()).decode("utf-8", "replace")

    def numbers(self, kind: GGUFValueType, count: int) -> np.ndarray:
        dtype = np.dtype(_NUMBERS[kind])
        begin = self.at
        self.skip(dtype.itemsize * count)
        return np.frombuffer(self._data, dtype, count, begin)

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind == GGUFValueType.ARRAY:
            return self.array()
        return self.numbers(kind, 1)[0].item()

    def array(self) -> list[str] | np.ndarray:
        kind, count = _value_kind(self.code()), self.count()
        if kind == GGUFValueType.ARRAY:
            raise GgufError("an array of arrays in its metadata is not supported")
        if kind != GGUFValueType.STRING:
            return self.numbers(kind, count)
        # Reading ends at the end of the file, whatever the count says.
        return [self.text() for _ in range(count)]


def _value_kind(code: int) -> GGUFValueType:
    try:
        return GGUFValueType(code)
    except ValueError as error:
        raise GgufError(f"its metadata hold a value of the unknown type {code}") from error


def _counts(cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(len(MAGIC)) != MAGIC:
        raise GgufError("it is no GGUF file")
    version = cursor.code()
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise GgufError("its numbers are big-endian, which is not supported")
        raise GgufError(f"its version is {version}; versions 2 and 3 are supported")
    if sys.byteorder != "little":
        raise GgufError("GGUF files can be read on little-endian processors only")
    return cursor.count(), cursor.count()


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text()
        if key in fields:
            raise GgufError(f"its metadata state {key[:100]!r} twice")
        fields[key] = cursor.value(_value_kind(cursor.code()))
    return fields


def _alignment(metadata: dict[str, Any]) -> int:
    stated = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(stated, int) or stated < 1 or stated & (stated - 1):
        raise GgufError(f"its general.alignment is {stated!r}, and must be a power of two")
    return stated


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Tensor]:
    described: dict[str, Tensor] = {}
    for _ in range(count):
        tensor = _description(cursor)
        if tensor.name in described:
            raise GgufError(f"it describes the tensor {tensor.name[:100]!r} twice")
        described[tensor.name] = tensor
    begin = -(-cursor.at // alignment) * alignment
    placed = {
        name: Tensor(name, each.kind, each.shape, begin + _aligned(each, alignment)) for name, each in described.items()
    }
    for before, after in pairwise(sorted(placed.values(), key=lambda tensor: tensor.start)):
        if after.start < before.end:
            # Many tensors on the same bytes would take far more memory than the file.
            raise GgufError(f"its tensors {before.name[:100]!r} and {after.name[:100]!r} overlap")
    for tensor in placed.values():
        if tensor.end > cursor.size:
            raise GgufError(
                f"it is cut off: the tensor {tensor.name[:100]!r} ends at byte {tensor.end}, the file at {cursor.size}"
            )
    return placed


def _description(cursor: _Cursor) -> Tensor:
    """A tensor as its description has it: `start` counts from the first tensor's begin."""
    name = cursor.text()
    dimensions = cursor.code()
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise GgufError(f"the tensor {name[:100]!r} has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible")
    shape = tuple(cursor.count() for _ in range(dimensions))[::-1]
    code, start = cursor.code(), cursor.count()
    try:
        kind = GGMLQuantizationType(code)
    except ValueError as error:
        raise GgufError(f"the tensor {name[:100]!r} is of type {code}, which is not supported") from error
    if 0 in shape or shape[-1] % GGML_QUANT_SIZES[kind][0]:
        raise GgufError(f"the tensor {name[:100]!r} of type {kind.name} has the impossible shape {list(shape)}")
    return Tensor(name, kind, shape, start)


def _aligned(tensor: Tensor, alignment: int) -> int:
    if tensor.start % alignment:
        raise GgufError(f"the tensor {tensor.name[:100]!r} begins at {tensor.start}, no multiple of {alignment}")
    return tensor.start
