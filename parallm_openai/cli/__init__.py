"""The command line: `parallm-openai serve | chat | generate | models | doctor | bench`.

Each command has a module of its own. What takes long to import waits until a command needs it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from parallm_openai import __version__, interrupts
from parallm_openai.cli import bench, chat, doctor, generate, models, serve, streams
from parallm_openai.cli.command import options_of_command
from parallm_openai.cli.flags import command_class

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An OpenAI-compatible server for MLX: speculative decoding inside a continuous batch.",
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


for command in (serve.serve, chat.chat, generate.generate, doctor.doctor, bench.bench):
    app.command(cls=command_class(options_of_command(command)))(command)
app.add_typer(models.app)


def main() -> None:
    interrupts.install()
    streams.prepare()
    try:
        with streams.full_explained():
            app()
    except SystemExit as end:
        if end.code == interrupts.INTERRUPTED:
            # Python's own end could abort in threads of MLX that still run.
            interrupts.leave()
        raise
