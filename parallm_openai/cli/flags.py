"""Flags as users write them: under our names, under those of other programs, or under none that there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from parallm_openai.cli.failure import BAD_USAGE, fail
from parallm_openai.cli.options import Option
from parallm_openai.cli.peers import NO_EQUAL

# Where a context keeps which aliases were written, flag by flag.
WRITTEN = "parallm_openai.written"


def command_class(options: Iterable[Option]) -> type[TyperCommand]:
    """A class of typer's commands that knows the aliases of these options, and helps with flags that it does not know.

    typer itself would list all aliases in the first column of the help.
    """
    aliases = {alias: option.flag for option in options for alias in option.aliases}

    class Command(TyperCommand):
        def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
            takes_value = _takes_value(self.get_params(ctx))
            return super().parse_args(ctx, list(_translated(ctx, args, aliases, takes_value)))

    return Command


def as_written(context: typer.Context, flag: str) -> str:
    """The flag under the name that the user has given it."""
    return str(context.meta.get(WRITTEN, {}).get(flag, flag))


def _takes_value(parameters: Iterable[Any]) -> dict[str, bool]:
    """Each flag that there is, and whether the next word is its value."""
    return {
        flag: not getattr(parameter, "is_flag", True)
        for parameter in parameters
        if parameter.param_type_name == "option"
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


def _translated(
    ctx: typer.Context, args: list[str], aliases: Mapping[str, str], takes_value: Mapping[str, bool]
) -> Iterator[str]:
    """The words with our own names for aliases. Ends the command at a flag that there is not."""
    written = ctx.meta.setdefault(WRITTEN, {})
    words = iter(args)
    for word in words:
        if word == "--":
            yield word
            yield from words
            return
        name, equals, value = word.partition("=")
        flag = aliases.get(name, name)
        if flag != name:
            written[flag] = name
        elif _is_flag(word) and name not in takes_value and (name in NO_EQUAL or not _is_known(name, takes_value)):
            fail(_unknown(name, aliases, takes_value), BAD_USAGE)
        yield f"{flag}{equals}{value}"
        if takes_value.get(flag) and not equals:
            # Whatever it looks like, it is a value.
            yield from (each for each in [next(words, None)] if each is not None)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _is_known(name: str, flags: Mapping[str, bool]) -> bool:
    """A flag of one letter may have its value behind it: -mdemo."""
    return name in flags or (not name.startswith("--") and name[:2] in flags)


def _unknown(name: str, aliases: Mapping[str, str], flags: Iterable[str]) -> str:
    said = f"there is no flag {name:.80}"
    if (sentence := NO_EQUAL.get(name)) is not None:
        return f"{said}: {sentence}"
    near = difflib.get_close_matches(name, [*flags, *aliases], n=1)
    return f"{said}; did you mean {aliases.get(near[0], near[0])}?" if near else f"{said}; --help lists those that are"
