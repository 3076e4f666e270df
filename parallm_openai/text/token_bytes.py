"""The bytes that each token stands for."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


class TokenBytes:
    """A table from token id to bytes, for byte-level BPE and sentencepiece-style tokenizers.

    `of` has the bytes of every token, special ones included. `visible` has the bytes that belong in decoded text,
    which are none for special tokens. Raises ValueError for a tokenizer of another kind.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("not a fast tokenizer")
        kinds = _decoder_kinds(json.loads(backend.to_str()).get("decoder"))
        added = tokenizer.added_tokens_decoder
        size = max([*tokenizer.get_vocab().values(), *added], default=-1) + 1
        self.of = [b""] * size
        to_bytes = _reader(kinds)
        for token, index in tokenizer.get_vocab().items():
            self.of[index] = token.encode() if index in added else to_bytes(token)
        self.visible = list(self.of)
        for index, token in added.items():
            self.of[index] = token.content.encode()
            self.visible[index] = b"" if token.special else self.of[index]


def _decoder_kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    if decoder["type"] == "Sequence":
        return {kind for part in decoder["decoders"] for kind in _decoder_kinds(part)}
    return {decoder["type"]}


def _reader(kinds: set[str]) -> Any:
    if "ByteLevel" in kinds:
        return _from_byte_level
    if kinds & {"ByteFallback", "Metaspace"}:
        return _from_sentencepiece
    raise ValueError(f"no table of bytes for decoders {sorted(kinds)}")


def _from_byte_level(token: str) -> bytes:
    table = _byte_level_alphabet()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode()


def _from_sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(_SPACE, " ").encode()


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping: printable Latin-1 bytes stand for themselves, the others are written from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + at): byte for at, byte in enumerate(others)}


class Lexicon:
    """Finds the tokens that continue a text, and those that run across its end: for masks that enforce a text.

    `marks` are the tokens that are more than the text they are written as, like `<think>`.
    """

    def __init__(self, of: Sequence[bytes], marks: Collection[int]) -> None:
        self.of = of
        self._marks = frozenset(marks)
        # Single bytes come first in a vocabulary; of two tokens with the same bytes the model writes the later one.
        self._ids = {token: index for index, token in enumerate(of) if token and index not in self._marks}
        self._ids |= {of[index]: index for index in self._marks if of[index]}
        self._mark_sizes = sorted({len(of[index]) for index in self._marks} - {0}, reverse=True)
        self._sorted = sorted((token, index) for index, token in enumerate(of) if token)
        self._holding: dict[bytes, list[int]] = {}

    def continuing(self, text: bytes) -> list[int]:
        """The tokens that `text` begins with; only the mark if it begins with one."""
        found = [self._ids[text[:size]] for size in range(1, len(text) + 1) if text[:size] in self._ids]
        marks = [token for token in found if token in self._marks]
        return marks[-1:] or found

    def marks_in(self, text: bytes) -> list[tuple[int, int]]:
        """The begin and end of each mark in `text`; of several marks at one place, the longest."""
        found, at = [], 0
        while at < len(text):
            size = next((size for size in self._mark_sizes if self._ids.get(text[at : at + size]) in self._marks), 1)
            if size > 1:
                found.append((at, at + size))
            at += size
        return found

    def running_over(self, text: bytes) -> list[int]:
        """The tokens that begin with `text` and have more after it."""
        begin = bisect_right(self._sorted, (text, len(self.of)))
        found = []
        for at in range(begin, len(self._sorted)):
            token, index = self._sorted[at]
            if not token.startswith(text):
                break
            found.append(index)
        return found

    def holding(self, text: bytes) -> list[int]:
        """The tokens that have `text` inside them and more after it."""
        if text not in self._holding:
            # This looks at every token, but only once for each mark of a model.
            self._holding[text] = [index for index, token in enumerate(self.of) if text in token[:-1]]
        return self._holding[text]
