"""Why a request cannot be carried out, in words that each surface says with its own names of the fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Kind = Literal[
    "invalid_value",
    "invalid_type",
    "invalid_messages",
    "unsupported_parameter",
    "context_length_exceeded",
    "busy",
]


class Field(str):
    """The name of a field of a description (`description.py`), perhaps with an index and what is below it."""


class RequestError(ValueError):
    """A request cannot be carried out. `field` is the field that is at fault.

    `sentence` has a `{}` for each of `parts`. A part that is a Field is named as the surface names it. The kind
    `busy` says that the same request may succeed later.
    """

    def __init__(self, sentence: str, *parts: object, field: str | None = None, kind: Kind = "invalid_value") -> None:
        self.sentence = sentence
        self.parts = parts
        self.field = field
        self.kind: Kind = kind
        super().__init__(self.message())

    def message(self, name: Callable[[str], str] = str) -> str:
        """The sentence, with fields as `name` gives them."""
        return self.sentence.format(*(name(part) if isinstance(part, Field) else part for part in self.parts))


def unsupported(field: str, reason: str) -> RequestError:
    return RequestError("'{}' {}.", Field(field), reason, field=field, kind="unsupported_parameter")


def invalid_value(field: str, reason: object) -> RequestError:
    return RequestError("Invalid value for '{}': {}", Field(field), reason, field=field)
