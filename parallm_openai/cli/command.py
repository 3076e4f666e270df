"""Commands whose parameters are settings models: every field of a model becomes a flag of the command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from parallm_openai.cli.config_file import ConfigFileError, read_config_file
from parallm_openai.cli.failure import BAD_USAGE, fail
from parallm_openai.cli.options import Option, options_of
from parallm_openai.settings import ConfigFile, Settings

Command = Callable[..., None]


@dataclass(frozen=True)
class Given:
    """A value that the user has set, and what an error about it names: a flag, a variable, or a key of a file."""

    value: Any
    where: str


def with_settings(*, config_file: bool = False) -> Callable[[Command], Command]:
    """Make a typer command of a function whose parameters are settings models, besides those that typer knows.

    A flag wins over its environment variable, a variable over the file of `--config` (if the command takes one), and
    the file over the default. A bad value ends the command with a sentence that says where it was given.
    """

    def decorate(command: Command) -> Command:
        parameters = inspect.signature(command, eval_str=True).parameters
        models = {name: each.annotation for name, each in parameters.items() if _is_settings(each.annotation)}
        options = {name: list(options_of(model)) for name, model in models.items()}
        every = [option for each in options.values() for option in each]
        file_option = list(options_of(ConfigFile)) if config_file else []

        def run(context: typer.Context, **values: Any) -> None:
            given = _from_flags_and_variables(context, [*file_option, *every], values)
            if "config" in given and config_file:
                file = _made(ConfigFile, file_option, given).config
                given = _from_file(Path(str(file)), every) | given
            made = {name: _made(model, options[name], given) for name, model in models.items()}
            command(**{name: values[name] for name in parameters if name not in models}, **made)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                *(each for name, each in parameters.items() if name not in models),
                inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
                # Where a file may hold every setting, the help says once that each has a variable, too.
                *(option.parameter(show_variable=not config_file) for option in [*file_option, *every]),
            ]
        )
        return run

    return decorate


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _from_flags_and_variables(
    context: typer.Context, options: Iterable[Option], values: Mapping[str, Any]
) -> dict[str, Given]:
    given = {}
    for option in options:
        source, value = context.get_parameter_source(option.name), values[option.name]
        # A variable that holds no value counts as not set.
        if value is not None and source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            given[option.name] = Given(value, option.flag if source.name == "COMMANDLINE" else str(option.variable))
    return given


def _from_file(file: Path, options: Iterable[Option]) -> dict[str, Given]:
    known = {option.key: option for option in options}
    try:
        found = read_config_file(file, known)
    except ConfigFileError as error:
        fail(str(error), BAD_USAGE)
    for key, value in found.items():
        # Pydantic would take `true` for the number 1.
        if isinstance(value, bool) and not known[key].is_switch:
            fail(_refusal(known[key], value, f"{file}: {key}"), BAD_USAGE)
    return {known[key].name: Given(value, f"{file}: {key}") for key, value in found.items()}


def _made(model: type[Settings], options: Iterable[Option], given: Mapping[str, Given]) -> Any:
    fields = {option.field: option for option in options}
    values = {field: given[option.name].value for field, option in fields.items() if option.name in given}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            fail(message, BAD_USAGE)
        option = fields[str(first["loc"][0])]
        value, where = given[option.name].value, given[option.name].where
        # The models' own validators say what is wrong. Pydantic's sentences do not know what a flag takes.
        fail(f"{where}: {message}" if first["type"] == "value_error" else _refusal(option, value, where), BAD_USAGE)


def _refusal(option: Option, value: Any, where: str) -> str:
    kind = "a text or a list of texts" if option.repeatable else option.kind
    said = f"{where}: must be {kind}" + ("" if option.secret else f", not {_shown(value)}")
    return f"{said}; {option.hint}" if option.hint else said


def _shown(value: Any) -> str:
    """The value as a configuration file or a command line has it, rather than as Python does."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.80}"
