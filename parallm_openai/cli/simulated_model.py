"""The real model beside a simulation: in this process, or behind a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from parallm_openai.bench.servers import HttpTarget, first_model
from parallm_openai.bench.words import words
from parallm_openai.cli.bench_settings import TargetSettings
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.settings import DraftSettings, ModelSettings
from parallm_openai.simulation.costs import StepCosts

if TYPE_CHECKING:
    from parallm_openai.models.loading import LoadedModel

PROMPT_WORDS = 5000
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
console = Console()


def tell(text: str) -> None:
    """Say what is being done."""
    console.print(text, style="dim")


def models_of(servers: TargetSettings) -> tuple[LoadedModel, LoadedModel | None]:
    """The model and what drafts for it, loaded. Ends the command if that cannot be."""
    from parallm_openai.models.loading import LoadedModel

    settings = ModelSettings(model=servers.model or os.environ.get("PARALLM_MODEL") or None)
    draft = load_draft(settings, DraftSettings(draft_model=servers.draft_model))
    # A trace says nothing of texts, which suffix drafts depend on.
    return load_model(settings), draft if isinstance(draft, LoadedModel) else None


def text_of(model: LoadedModel) -> Sequence[int]:
    """Tokens of a long text that prompts are cut out of."""
    return model.tokenizer.encode(" ".join(words(0, PROMPT_WORDS)))


def server_arguments(servers: TargetSettings, costs: StepCosts) -> list[str]:
    """`serve`'s, for a server that drafts as the costs do."""
    arguments = ["--model", servers.model] if servers.model is not None else []
    if servers.draft_model is not None:
        arguments += ["--draft-model", servers.draft_model]
    return [*arguments, "--draft", "none"] if costs.drafter == "none" else arguments


def target_at(url: str) -> HttpTarget:
    """Raises BenchError if nothing answers there."""
    return HttpTarget("served", url, first_model(url), extra={"ignore_eos": True})
