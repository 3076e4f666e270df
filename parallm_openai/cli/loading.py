"""The models that a command works with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parallm_openai.cli.failure import BAD_USAGE, explained, fail, say
from parallm_openai.cli.progress import stage
from parallm_openai.models.named import DEMO, NAMED, SMOLLM2, default_model
from parallm_openai.settings import DraftSettings, ModelSettings, RequestDefaults

if TYPE_CHECKING:
    from parallm_openai.distributed.ranks import Ranks
    from parallm_openai.engine.build import DraftSource
    from parallm_openai.models.loading import LoadedModel
    from parallm_openai.text.defaults import Defaults


def load_model(settings: ModelSettings, ranks: Ranks | None = None) -> LoadedModel:
    """The model of the settings, or the default one, of which `ranks` have a share each.

    Ends the command if it cannot be loaded.
    """
    if settings.model is None and default_model() is DEMO:
        say(
            f"the model is the bundled toy: `parallm-openai models fetch {SMOLLM2.name}` fetches a real one, "
            f"and --model {DEMO.name} asks for the toy without this line"
        )
    model = _loaded(settings, "--revision", ranks)
    length = settings.context_length
    if length is None:
        return model
    if length > model.context_length:
        fail(f"--context-length: {model.name} was made for {model.context_length} tokens, not {length}", BAD_USAGE)
    return replace(model, context_length=length)


def have_models(settings: ModelSettings, drafting: DraftSettings) -> None:
    """Fetch what is not here yet, so that other processes can load it. Ends the command if there is no such model."""
    from parallm_openai.models.finding import find_model

    name = _named(settings, "--revision")
    with explained():
        find_model(name, settings.revision)
    if (draft := _draft_settings(settings, drafting)) is not None:
        name = _named(draft, "--draft-revision")
        with explained():
            find_model(name, draft.revision)


def _named(settings: ModelSettings, revision_flag: str) -> str:
    """The name of the model of the settings, which `revision_flag` must suit; says so if it is to be fetched."""
    name = settings.model or default_model().name
    if settings.revision is not None and not _is_of_hub(name):
        fail(f"{revision_flag}: {name} does not come from the hub", BAD_USAGE)
    if _is_of_hub(name) and not _is_here(name):
        # The hub's library shows how far it is.
        say(f"fetching {name} from the hub ...")
    return name


def _loaded(settings: ModelSettings, revision_flag: str, ranks: Ranks | None) -> LoadedModel:
    from parallm_openai.models.loading import load

    name = _named(settings, revision_flag)
    options = settings.model_dump(include={"adapter_path", "chat_template", "trust_remote_code", "revision"})
    with explained(), ExitStack() as loading:
        shown = partial(stage, f"loading {_short(name)}")
        return load(name, **options, found=lambda place: loading.enter_context(shown()), ranks=ranks)


def _short(name: str) -> str:
    return Path(name).name if Path(name).exists() else name


def _is_of_hub(name: str) -> bool:
    return name not in NAMED and not Path(name).expanduser().exists() and name.count("/") == 1


def _is_here(hub_id: str) -> bool:
    """Whether the hub's cache has something of the model."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}").exists()


def load_defaults(model: LoadedModel, chosen: RequestDefaults) -> Defaults:
    """What holds for requests that do not say. Ends the command if that cannot be."""
    from parallm_openai.text.defaults import Defaults

    with explained():
        return Defaults.of(model, chosen)


def load_draft(
    settings: ModelSettings, drafting: DraftSettings | None = None, ranks: Ranks | None = None
) -> DraftSource:
    """What drafts for the model of the settings; `ranks` have a share each of a draft model.

    Unless told otherwise, a draft model of its own if it is a named model that has one, its own head if its checkpoint
    has one, and suffixes for any other.
    """
    drafting = drafting or DraftSettings()
    draft = _draft_settings(settings, drafting)
    if draft is None:
        return None if drafting.draft == "none" else drafting.draft or "auto"
    return _loaded(draft, "--draft-revision", ranks)


def _draft_settings(settings: ModelSettings, drafting: DraftSettings) -> ModelSettings | None:
    """Those of the draft model, if there is one."""
    path = drafting.draft_model
    if path is None and drafting.draft is None:
        named = default_model() if settings.model is None else NAMED.get(settings.model)
        path = str(named.draft) if named is not None and named.draft is not None else None
    if path is None:
        return None
    return ModelSettings(model=path, revision=drafting.draft_revision, trust_remote_code=settings.trust_remote_code)
