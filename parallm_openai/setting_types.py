"""What settings are made of: models whose fields carry a `Flag`, and the types of the texts that users give."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


@dataclass(frozen=True)
class Flag:
    """Says that users can set a field.

    The help lists it under the heading `panel`, or at the top if that is empty. `name` is the flag's, if it is not the
    field's own; `short` is its one-letter form. `aliases` are the names that other programs have for the same thing,
    and are keys of a configuration file as well. `kind` says what to give, if the type alone does not say enough;
    `hint` ends the error about a bad value. A `repeatable` flag gives one more value each time.
    """

    panel: str = ""
    name: str | None = None
    short: str | None = None
    aliases: tuple[str, ...] = ()
    kind: str | None = None
    hint: str | None = None
    repeatable: bool = False


class Settings(BaseModel):
    """Settings that are checked when they are made, and do not change after that."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Whether each flag has an environment variable: PARALLM_ and its name.
    has_variables: ClassVar[bool] = True


def flag_of(field: str) -> str:
    """How users write a field: `max_tokens` is `--max-tokens`, if its `Flag` names no other."""
    return f"--{field.replace('_', '-')}"


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def by_commas(value: Any) -> Any:
    """The parts of a text with commas, or of a list in JSON; anything else is left to pydantic."""
    if not isinstance(value, str):
        return value
    try:
        # vLLM takes lists so. What begins with a bracket may also be an address of IPv6.
        return tuple(json.loads(value)) if value.startswith('["') else _parts(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}") from error


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def in_each(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda values: tuple(map(check, values)))


def from_json(value: Any) -> Any:
    """The object that a text of JSON stands for; a configuration file may hold the object itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}") from error


LowerCase = BeforeValidator(_lower)
NonEmpty = Annotated[str, AfterValidator(_not_empty)]
# Texts of a repeatable flag; a configuration file may hold one text or a list of them.
Repeatable = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(by_commas)]
