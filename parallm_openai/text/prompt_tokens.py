"""From a prompt to token ids that the model knows and its context has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from parallm_openai.text.request_error import Field, RequestError
from parallm_openai.text.tokenizer import Tokenizer, TokenizerError

# Of a text with more characters than this for each token of the context, the beginning is tokenised first: that alone
# is too long as a rule. Cutting the text changes its tokens by less than the margin.
PROBED_CHARACTERS = 16
PROBE_MARGIN = 1024
# A number of tokens with more digits than this is not repeated in an error.
SHOWN_TOKENS = 10**12


class Limits(Protocol):
    """What an engine can take."""

    @property
    def context_length(self) -> int:
        """The most tokens of one sequence, its prompt included."""

    @property
    def capacity(self) -> int:
        """How many sequences may run and wait together."""


class PromptTokens:
    """Tokenises prompts for one model and holds them to its limits. Errors name the prompt's field."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits

    def of(self, prompt: Any, field: str, *, special: bool = True, empty_is_start: bool = True) -> tuple[int, ...]:
        """The token ids of a prompt, which is text or token ids. Raises RequestError."""
        if isinstance(prompt, str):
            tokens = self.of_text(prompt, field, special=special)
        elif isinstance(prompt, (list, tuple)) and all(type(token) is int for token in prompt):
            tokens = self.known(prompt, field)
        else:
            raise RequestError(
                "'{}' must be text or a list of token ids.", Field(field), field=field, kind="invalid_type"
            )
        if not tokens and empty_is_start and (start := self._tokenizer.start_token) is not None:
            tokens = [start]
        if not tokens:
            raise RequestError("'{}' must not be empty.", Field(field), field=field)
        return tuple(tokens)

    def of_text(self, text: str, field: str, *, special: bool = True) -> list[int]:
        """A text's token ids. Raises RequestError, if it can without tokenising all of a text that is too long."""
        limit = self._limits.context_length
        if len(text) > self._tokenizer.most_characters(limit):
            raise text_too_long(limit, len(text), field)
        beginning = PROBED_CHARACTERS * limit
        try:
            if len(text) > beginning and len(self._tokenizer.encode(text[:beginning])) > limit + PROBE_MARGIN:
                raise text_too_long(limit, len(text), field)
            return self._tokenizer.encode(text, special=special)
        except TokenizerError as error:
            raise RequestError("Invalid value for '{}': {}.", Field(field), error, field=field) from error

    def of_input(self, prompt: Any, field: str, *, cut: bool = False) -> tuple[int, ...]:
        """The token ids of a text to embed, which may be as long as the context. Raises RequestError.

        One that is longer is cut if `cut`; it keeps a special token at its end.
        """
        limit = self._limits.context_length
        if not prompt:
            raise RequestError("'{}' must not be empty.", Field(field), field=field)
        if cut and isinstance(prompt, str):
            prompt = prompt[: min(PROBED_CHARACTERS * limit, self._tokenizer.most_characters(limit))]
        tokens = self.of(prompt, field)
        if len(tokens) <= limit:
            return tokens
        if not cut:
            raise input_too_long(limit, len(tokens), field)
        last = tokens[-1] if tokens[-1] in self._tokenizer.special_ids else tokens[limit - 1]
        return (*tokens[: limit - 1], last)

    def known(self, tokens: Sequence[int], field: str) -> list[int]:
        """The same ids. Raises RequestError for one that is not in the vocabulary."""
        if unknown := self._tokenizer.unknown_ids(tokens):
            raise RequestError(
                "Invalid token id in '{}': {} is not in the vocabulary (0 to {}).",
                Field(field),
                str(unknown[0])[:30],
                self._tokenizer.vocab_size - 1,
                field=field,
            )
        return list(tokens)

    def answer_length(self, prompt: Sequence[int], wanted: int | None, default: int | None, field: str) -> int:
        """How many tokens may be generated after `prompt`: those `wanted`, else `default`, else all that fit.

        Raises RequestError if the wanted ones, or a single one, do not fit. The default gives way to the context.
        """
        limit = self._limits.context_length
        room = limit - len(prompt)
        if wanted is not None:
            if wanted > room:
                raise context_exceeded(limit, len(prompt), wanted, field)
            return wanted
        if room < 1:
            raise context_exceeded(limit, len(prompt), min(default or 1, limit), field)
        return room if default is None else min(default, room)

    def check_messages(self, count: int) -> None:
        """Raise RequestError for a conversation without messages, or with more of them than there can be tokens."""
        limit = self._limits.context_length
        if not count:
            raise RequestError("'{}' must not be empty.", Field("messages"), field="messages")
        if count > limit:
            raise context_exceeded(limit, count, 1, "messages")

    def check_sequences(self, count: int, field: str) -> None:
        """Raise RequestError for more sequences than could ever run and wait together."""
        capacity = self._limits.capacity
        if count > capacity:
            sentence = "'{}' asks for {} sequences; this server runs and queues {} at most."
            raise RequestError(sentence, Field(field), count, capacity, field=field)


def context_exceeded(limit: int, prompt: int, completion: int, field: str) -> RequestError:
    """Names the prompt's `field`, or `max_tokens` if that alone is more than the context."""
    if completion > limit:
        return RequestError(
            "This model's maximum context length is {} tokens. However, you requested {} by '{}'.",
            limit,
            completion if completion < SHOWN_TOKENS else "far more",
            Field("max_tokens"),
            field="max_tokens",
            kind="context_length_exceeded",
        )
    name = Field(field)
    return RequestError(
        "This model's maximum context length is {} tokens. However, you requested {} tokens "
        "({} in the {}, {} in the completion). Please reduce the length of the {} or completion.",
        *(limit, prompt + completion, prompt, name, completion, name),
        field=field,
        kind="context_length_exceeded",
    )


def input_too_long(limit: int, tokens: int, field: str) -> RequestError:
    return RequestError(
        "This model's maximum context length is {} tokens. However, the {} has {} tokens. Please reduce its length.",
        *(limit, Field(field), tokens),
        field=field,
        kind="context_length_exceeded",
    )


def text_too_long(limit: int, characters: int, field: str) -> RequestError:
    name = Field(field)
    return RequestError(
        "This model's maximum context length is {} tokens. However, the {} has {} characters, "
        "which are more tokens than that. Please reduce the length of the {}.",
        *(limit, name, characters, name),
        field=field,
        kind="context_length_exceeded",
    )
