"""The models that a command works with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallm_openai.cli.failure import explained, say
from parallm_openai.models.named import DEMO, NAMED, SMOLLM2, default_model
from parallm_openai.settings import DraftSettings, ModelSettings, RequestDefaults

if TYPE_CHECKING:
    from parallm_openai.engine.build import DraftSource
    from parallm_openai.models.loading import LoadedModel
    from parallm_openai.text.defaults import Defaults


def load_model(settings: ModelSettings) -> LoadedModel:
    """The model of the settings, or the default one. Ends the command if it cannot be loaded."""
    from parallm_openai.models.loading import load

    options = settings.model_dump(include={"adapter_path", "chat_template", "trust_remote_code"})
    if settings.model is None and default_model() is DEMO:
        say(
            f"the model is the bundled toy: `parallm-openai models fetch {SMOLLM2.name}` fetches a real one, "
            f"and --model {DEMO.name} asks for the toy without this line"
        )
    with explained():
        return load(settings.model or default_model().name, **options)


def load_defaults(model: LoadedModel, chosen: RequestDefaults) -> Defaults:
    """What holds for requests that do not say. Ends the command if that cannot be."""
    from parallm_openai.text.defaults import Defaults

    with explained():
        return Defaults.of(model, chosen)


def load_draft(settings: ModelSettings, drafting: DraftSettings | None = None) -> DraftSource:
    """What drafts for the model of the settings. A named model has a drafter of its own, unless told otherwise."""
    drafting = drafting or DraftSettings()
    if drafting.draft == "ngram":
        return "ngram"
    path = drafting.draft_model
    if path is None and drafting.draft is None:
        named = default_model() if settings.model is None else NAMED.get(settings.model)
        if named is not None and named.draft is not None:
            if named.draft == "ngram":
                return "ngram"
            path = str(named.draft)
    if path is None:
        return None
    return load_model(ModelSettings(model=path, trust_remote_code=settings.trust_remote_code))
