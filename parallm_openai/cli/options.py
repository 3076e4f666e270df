"""The fields of settings models as users see them: as flags, as environment variables, and as keys of a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from parallm_openai.setting_types import Flag, Settings, flag_of

# The help has a column for what a flag takes. A longer list of choices goes into the description.
WIDEST = 40


@dataclass(frozen=True)
class Option:
    """One field that has a flag.

    `kind` says what may be given ("a whole number from 1 to 1024"), and `brief` says it in the help ("1..1024").
    """

    field: str
    name: str
    panel: str
    default: Any
    help: str
    kind: str
    brief: str
    hint: str | None
    has_variable: bool
    repeatable: bool
    secret: bool
    short: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def keys(self) -> Iterator[str]:
        """What a configuration file may call it."""
        yield self.key
        yield from (alias.removeprefix("--") for alias in self.aliases if alias.startswith("--"))

    @property
    def opposite(self) -> str | None:
        """The flag that turns it off."""
        return f"--no-{self.key}" if self.is_switch else None

    @property
    def variable(self) -> str | None:
        return f"PARALLM_{self.name.upper()}" if self.has_variable else None

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def default_text(self) -> str | None:
        """The default as it could be given; None if there is none to give."""
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default)) or None
        return None if self.default is None else _plain(self.default)

    def parameter(self, *, show_variable: bool) -> inspect.Parameter:
        """The parameter of a function that typer turns into this flag.

        Typer hands over every value as the user wrote it: the settings model is what reads and checks it.
        """
        brief, text = self.brief, self.help
        if len(brief) > WIDEST:
            brief, text = "name", f"{text} It is {self.kind}."
        if self.aliases:
            text = f"{text} Also {', '.join(self.aliases)}."
        info = typer.Option(
            self.flag + (f"/{self.opposite}" if self.is_switch else ""),
            *([self.short] if self.short else []),
            envvar=self.variable,
            show_envvar=show_variable,
            help=escape(text),
            metavar="" if self.is_switch else f"<{brief}>",
            rich_help_panel=self.panel or None,
            parser=_as_given,
        )
        plain: Any = bool if self.is_switch else list[str] if self.repeatable else str
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[plain, info],
            default=self.default if self.is_switch else None if self.repeatable else self.default_text,
        )


def options_of(model: type[Settings]) -> Iterator[Option]:
    """An option for every field of the model that has a `Flag`."""
    schemas = model.model_json_schema()["properties"]
    for field, info in model.model_fields.items():
        for flag in info.metadata:
            if isinstance(flag, Flag):
                yield Option(
                    field=field,
                    name=flag.name or field,
                    panel=flag.panel,
                    default=info.default,
                    help=info.description or "",
                    kind=flag.kind or _in_words(schemas[field]),
                    brief=(flag.kind or _in_signs(schemas[field])).removeprefix("a ").removeprefix("an "),
                    hint=flag.hint,
                    has_variable=model.has_variables,
                    repeatable=flag.repeatable,
                    secret=not info.repr,
                    short=flag.short,
                    aliases=flag.aliases,
                )


def _as_given(value: Any) -> Any:
    return value


def _in_words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, for a sentence."""
    if "anyOf" in schema:
        return " or ".join(map(_in_words, _alternatives(schema)))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *others, last = schema["enum"]
        return f"{'one of ' if len(others) > 1 else ''}{', '.join(others)} or {last}"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
    name, (least, most) = names[schema["type"]], _limits(schema)
    if "exclusiveMinimum" in schema:
        return f"{name} above {_plain(schema['exclusiveMinimum'])}"
    if least and most:
        return f"{name} from {least} to {most}"
    return f"{name} of at least {least}" if least else name


def _in_signs(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, for a narrow column."""
    if "anyOf" in schema:
        return "|".join(map(_in_signs, _alternatives(schema)))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "|".join(schema["enum"])
    if "exclusiveMinimum" in schema:
        return f"above {_plain(schema['exclusiveMinimum'])}"
    least, most = _limits(schema)
    return f"{least}..{most}" if least or most else _in_words(schema)


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a union. Nobody can give "nothing" as a value."""
    return [each for each in schema["anyOf"] if each.get("type") != "null"]


def _limits(schema: Mapping[str, Any]) -> tuple[str, str]:
    """The least and the most, as texts that are empty if there is no such limit."""
    return _plain(schema.get("minimum", "")), _plain(schema.get("maximum", ""))


def _plain(value: Any) -> str:
    """4 rather than 4.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
