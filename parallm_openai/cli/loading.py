"""The models that a command works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallm_openai.cli.failure import explained
from parallm_openai.settings import DraftSettings, ModelSettings

if TYPE_CHECKING:
    from parallm_openai.engine.build import DraftSource
    from parallm_openai.models.loading import LoadedModel


def load_model(settings: ModelSettings) -> LoadedModel:
    """The model of the settings, or the bundled one. Ends the command if it cannot be loaded."""
    from parallm_openai import demo
    from parallm_openai.models.loading import load

    options = settings.model_dump(include={"adapter_path", "trust_remote_code"})
    with explained():
        if settings.model is None:
            return load(demo.TARGET_PATH, name=demo.MODEL_ID, **options)
        return load(settings.model, **options)


def load_draft(settings: ModelSettings, drafting: DraftSettings | None = None) -> DraftSource:
    """What drafts for the model of the settings. The bundled model has a bundled draft, unless told otherwise."""
    from parallm_openai import demo

    drafting = drafting or DraftSettings()
    if drafting.draft == "ngram":
        return "ngram"
    path = drafting.draft_model
    if path is None and settings.model is None and drafting.draft is None:
        path = str(demo.DRAFT_PATH)
    if path is None:
        return None
    return load_model(ModelSettings(model=path, trust_remote_code=settings.trust_remote_code))
