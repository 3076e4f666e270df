"""What a request holds that this server does not know: ignored with a header that names it, or refused if strict."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from parallm_openai.api import errors
from parallm_openai.api.errors import ApiError

log = logging.getLogger(__name__)

HEADER = "x-parallm-ignored"
# A header may hold this many names; a client can send far more.
MAX_NAMES = 20
# Each pass finds the unknown fields of one more level.
MAX_PASSES = 8
# Kinds of pydantic's errors.
UNKNOWN_FIELD, UNKNOWN_HINT = "extra_forbidden", "unknown_hint"


def _hint(value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validated(value)
    except ValidationError as error:
        if not isinstance(value, str):
            raise
        raise PydanticCustomError(UNKNOWN_HINT, "{reason}", {"reason": error.errors()[0]["msg"]}) from error


# Marks a field of a few known words that cannot change the answer: a new word is ignored as an unknown field is.
Hint = WrapValidator(_hint)


class Ignored:
    """The names of what one request holds in vain. If `strict`, each is an error instead."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, error: ApiError) -> None:
        """Note that `name` is ignored. Raises `error` if strict."""
        if self.strict:
            raise error
        self._names.append(name)

    def add_unknown(self, body: Any, found: Sequence[Mapping[str, Any]]) -> bool:
        """Take what pydantic has `found` to be unknown out of the body, in place; whether there was anything."""
        if self.strict:
            return False
        unknown = [error["loc"] for error in found if error["type"] in (UNKNOWN_FIELD, UNKNOWN_HINT)]
        dropped = [name for location in unknown if (name := _drop(body, location)) is not None]
        self._names += dropped
        return bool(dropped)

    def header(self) -> str:
        """The names in ASCII, which a header must be, by commas."""
        names = [_printable(name) for name in self._names[:MAX_NAMES]]
        more = len(self._names) - len(names)
        return ", ".join([*names, f"and {more} more"] if more > 0 else names)


def _printable(name: str) -> str:
    """The name in characters that a header may hold anywhere; a space may not stand at its ends."""
    return "".join(character if "!" <= character <= "~" else "?" for character in name) or "?"


def _drop(body: Any, location: Sequence[str | int]) -> str | None:
    """Delete the field at a location of pydantic's, and return its name; None if it cannot be told which it is."""
    place, keys = body, location[1:]
    for key in keys[:-1]:
        if _has(place, key):
            place = place[key]
        elif isinstance(key, int) or "=" not in key:
            # The branch of a union whose choice is open: what is unknown to one may be known to another.
            return None
    if not isinstance(place, dict) or keys[-1] not in place:
        return None
    del place[keys[-1]]
    return errors.path(keys[:-1], keys[-1:])


def _has(place: Any, key: str | int) -> bool:
    return key in range(len(place)) if isinstance(place, list) else isinstance(place, dict) and key in place
