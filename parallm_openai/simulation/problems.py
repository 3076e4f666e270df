"""What is wrong with a file that cannot be used: where in it, and why."""

from __future__ import annotations

from pydantic import ValidationError


class FileError(ValueError):
    """A file that cannot be used, with its name, the place in it and the reason."""


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic has found, as in `verify.seconds.0.1: Input should be a valid number`."""
    first = error.errors(include_url=False)[0]
    return ": ".join([".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")]).removeprefix(": ")
