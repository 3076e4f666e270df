"""Text from tokens as they come, never half a character."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

from parallm_openai.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import StreamingDetokenizer


class Detokenizer(Protocol):
    """Turns one sequence's tokens into text; the pieces joined are the decoded whole.

    A character whose bytes are spread over several tokens comes out when it is complete.
    If it is incomplete at the end, `flush` returns U+FFFD for it.
    """

    def add(self, token: int) -> str:
        """The text that this token completes."""

    def flush(self) -> str:
        """The text that is left when no more tokens come."""


class ByteDetokenizer:
    """Joins the tokens' bytes and decodes them as UTF-8, incrementally."""

    def __init__(self, table: TokenBytes, shown: frozenset[int] = frozenset()) -> None:
        self._visible = table.visible
        self._shown = {token: table.of[token] for token in shown}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        if token in self._shown:
            return self._decoder.decode(self._shown[token])
        # Models have more ids than there are tokens: an id without a token has no text.
        return self._decoder.decode(self._visible[token]) if token < len(self._visible) else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class LibraryDetokenizer:
    """mlx-lm's streaming detokenizer, for tokenizers without a table of bytes."""

    def __init__(self, detokenizer: StreamingDetokenizer) -> None:
        self._inner = detokenizer
        self._inner.reset()

    def add(self, token: int) -> str:
        self._inner.add_token(token)
        return str(self._inner.last_segment)

    def flush(self) -> str:
        self._inner.finalize()
        return str(self._inner.last_segment)
