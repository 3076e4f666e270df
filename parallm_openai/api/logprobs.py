"""Log-probabilities in the two shapes of OpenAI's endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallm_openai.engine.request import TokenLogprob
from parallm_openai.text.tokenizer import Tokenizer

# JSON has no minus infinity; OpenAI uses this number for a token that cannot come.
LEAST = -9999.0


def chat_content(entries: Sequence[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat choice."""
    return [
        {
            **_named(entry.token, entry.logprob, tokenizer),
            "top_logprobs": [_named(token, logprob, tokenizer) for token, logprob in entry.top],
        }
        for entry in entries
    ]


def _named(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, LEAST), "bytes": list(raw)}


@dataclass(frozen=True)
class Echo:
    """A prompt as text, and where each of its tokens begins in it.

    Special tokens are part of the text, except the one that stands for the start of a text.
    """

    tokens: tuple[int, ...]
    text: str
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, tokens: tuple[int, ...], tokenizer: Tokenizer) -> Echo:
        detokenizer = tokenizer.detokenizer(tokenizer.special_tokens)
        text, offsets = "", []
        for place, token in enumerate(tokens):
            offsets.append(len(text))
            if place or token != tokenizer.bos_token:
                text += detokenizer.add(token)
        return cls(tokens, text + detokenizer.flush(), tuple(offsets))


class CompletionLogprobs:
    """Builds the `logprobs` of a completion choice piece by piece. Offsets count characters of its text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._generated = tokenizer.detokenizer()
        self._offset = 0

    def prompt(self, echo: Echo, entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The entries of an echoed prompt; the first, which nothing precedes, is None."""
        self._offset = len(echo.text)
        return self._piece(echo.tokens, entries, echo.offsets)

    def piece(self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The entries of some generated tokens."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._generated.add(token))
        return self._piece(tokens, entries, offsets)

    def _piece(
        self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None], offsets: Sequence[int]
    ) -> dict[str, Any]:
        names = [legacy_name(token, self._tokenizer) for token in tokens]
        return {
            "tokens": names,
            "token_logprobs": [None if entry is None else max(entry.logprob, LEAST) for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": list(offsets),
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The most likely tokens, and the chosen one even if it is not among them."""
        found = {legacy_name(token, self._tokenizer): max(logprob, LEAST) for token, logprob in entry.top}
        found.setdefault(legacy_name(entry.token, self._tokenizer), max(entry.logprob, LEAST))
        return found


def legacy_name(token: int, tokenizer: Tokenizer) -> str:
    r"""A token's text, or `bytes:\xe2\x82` if it is a part of a character: names of tokens must differ."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def joined(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several pieces as one."""
    return {key: [item for piece in pieces for item in piece[key]] for key in pieces[0]}
