"""`parallm-openai doctor`."""

from __future__ import annotations

from parallm_openai.cli.command import with_settings
from parallm_openai.cli.loading import load_model
from parallm_openai.cpu import prepare
from parallm_openai.settings import ModelSettings


@with_settings()
def doctor(model: ModelSettings) -> None:
    """Say what this machine and this model can do: BLAS, device, types, batching, speculation."""
    prepare()
    from rich.console import Console
    from rich.table import Table

    from parallm_openai.doctor import describe_machine, describe_model

    table = Table(show_header=False)
    for name, value in describe_machine():
        table.add_row(name, value)
    table.add_section()
    for name, value in describe_model(load_model(model)):
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)
