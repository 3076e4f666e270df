"""The bytes that each token stands for."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


class TokenBytes:
    """A table from token id to bytes, for byte-level BPE and sentencepiece-style tokenizers.

    `of` gives a token's own bytes, special or not; `visible` those that belong in the text,
    none for special tokens. Raises ValueError for a tokenizer of another kind.
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
    """GPT-2's mapping: printable Latin-1 bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + at): byte for at, byte in enumerate(others)}
