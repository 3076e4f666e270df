"""Commands whose parameters are settings models: every field of a model becomes a flag of the command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from parallm_openai.cli.failure import BAD_USAGE, fail
from parallm_openai.cli.flags import as_written
from parallm_openai.cli.options import Option, options_of
from parallm_openai.setting_types import Settings
from parallm_openai.settings import ConfigFile

Command = Callable[..., None]
# The parameter of a positional argument that sets a setting.
POSITIONAL = "positional"


@dataclass(frozen=True)
class Given:
    """A value that the user has set, and what an error about it names: a flag, a variable, or a key of a file."""

    value: Any
    where: str


def with_settings(*, config_file: bool = False, positional: str | None = None) -> Callable[[Command], Command]:
    """Make a typer command of a function whose parameters are settings models, besides those that typer knows.

    A flag wins over its environment variable, a variable over the file of `--config` (if the command takes one), and
    the file over the default. The setting `positional` may be given without its flag as well. A bad value ends the
    command with a sentence that says where it was given.
    """

    def decorate(command: Command) -> Command:
        parameters = inspect.signature(command, eval_str=True).parameters
        models = {name: each.annotation for name, each in parameters.items() if _is_settings(each.annotation)}
        options = {name: list(options_of(model)) for name, model in models.items()}
        every = [option for each in options.values() for option in each]
        file_option = list(options_of(ConfigFile)) if config_file else []

        def run(context: typer.Context, **values: Any) -> None:
            given = _from_flags_and_variables(context, [*file_option, *every], values)
            if positional is not None and (value := values.pop(POSITIONAL)) is not None:
                _add_positional(positional, value, given)
            if "config" in given and config_file:
                file = _made(ConfigFile, file_option, given).config
                given = _from_file(Path(str(file)), every) | given
            made = {name: _made(model, options[name], given) for name, model in models.items()}
            command(**{name: values[name] for name in parameters if name not in models}, **made)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        arguments = [] if positional is None else [_argument(next(each for each in every if each.name == positional))]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                *(each for name, each in parameters.items() if name not in models),
                *arguments,
                inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
                # Where a file may hold every setting, the help says once that each has a variable, too.
                *(option.parameter(show_variable=not config_file) for option in [*file_option, *every]),
            ]
        )
        run.options = every  # type: ignore[attr-defined]
        return run

    return decorate


def options_of_command(command: Command) -> list[Option]:
    """The options of a command that `with_settings` has made; none for any other."""
    return getattr(command, "options", [])


def _argument(option: Option) -> inspect.Parameter:
    """The parameter of a function that typer turns into a positional argument for the option's setting."""
    info = typer.Argument(metavar=option.name.upper(), help=f"The same as {option.flag}.", show_default=False)
    return inspect.Parameter(
        POSITIONAL, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str | None, info], default=None
    )


def _add_positional(name: str, value: str, given: dict[str, Given]) -> None:
    """Set the setting, over a variable. Ends the command if a flag gives another value."""
    before = given.get(name)
    if before is not None and before.where.startswith("-") and before.value != value:
        fail(f"{name.upper()} is {value!r}, and {before.where} is {before.value!r}: give one of the two", BAD_USAGE)
    given[name] = Given(value, name.upper())


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
            written = as_written(context, option.flag) if source.name == "COMMANDLINE" else str(option.variable)
            given[option.name] = Given(value, written)
    return given


def _from_file(file: Path, options: Iterable[Option]) -> dict[str, Given]:
    from parallm_openai.cli.config_file import ConfigFileError, read_config_file

    options = list(options)
    known = {option.key: option for option in options}
    try:
        found = read_config_file(file, {key: option.key for option in options for key in option.keys})
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
