"""`parallm-openai doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallm_openai.cli.command import with_settings
from parallm_openai.cli.failure import explained
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.cli.progress import stage
from parallm_openai.cpu import prepare
from parallm_openai.settings import DraftSettings, ModelSettings

if TYPE_CHECKING:
    from parallm_openai.doctor import Facts
    from parallm_openai.models.loading import LoadedModel


@with_settings(positional="model")
def doctor(model: ModelSettings, drafting: DraftSettings) -> None:
    """Say what this machine and this model can do: BLAS, device, types, batching, speculation.

    With --draft-model or --draft it also says what such drafts are worth.
    """
    prepare()
    from rich.console import Console
    from rich.table import Column, Table

    from parallm_openai.doctor import describe_machine, describe_model

    table = Table(Column(), Column(overflow="fold"), show_header=False)
    with stage("looking at the machine"):
        machine = describe_machine()
    target = load_model(model)
    for facts in (machine, describe_model(target), _drafts(target, model, drafting)):
        table.add_section()
        for name, value in facts:
            table.add_row(name, value)
    Console(soft_wrap=True).print(table)


def _drafts(target: LoadedModel, model: ModelSettings, drafting: DraftSettings) -> Facts:
    """Facts about drafts, if a flag asks for them."""
    if drafting.draft_model is None and drafting.draft is None:
        return []
    from parallm_openai.draft_check import describe_drafts

    draft = load_draft(model, drafting)
    with explained(), stage("drafting for a few prompts"):
        return describe_drafts(target, draft)
