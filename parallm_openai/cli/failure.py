"""How a command ends when it cannot go on: one sentence on standard error, and an exit status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import typer

# What the user gave is wrong, as opposed to what the machine or the model can do.
BAD_USAGE = 2


class BadUsage(Exception):
    """The user gave what cannot be used; the message names the flag, and the place in a file."""


def say(message: str) -> None:
    typer.echo(f"parallm-openai: {message}", err=True)


class Failed(typer.Exit):
    """The end of a command that has said why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = message


def fail(message: str, status: int = 1) -> NoReturn:
    say(message)
    raise Failed(message, status)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """End the command with one sentence if a model cannot be loaded or batched, or cannot take these prompts."""
    from parallm_openai.engine.capabilities import UnsupportedModelError
    from parallm_openai.models.loading import ModelLoadError
    from parallm_openai.text.output import GenerationError
    from parallm_openai.text.templates import TemplateError

    try:
        yield
    except (ModelLoadError, UnsupportedModelError, GenerationError, TemplateError) as error:
        fail(str(error))
