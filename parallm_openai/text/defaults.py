"""What holds for requests that do not say: the model's own recommendation, under what the user has set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parallm_openai.engine.request import DEFAULTABLE, SamplingParams
from parallm_openai.models.generation_config import read_generation_config
from parallm_openai.models.loading import LoadedModel, ModelLoadError
from parallm_openai.settings import NO_DEFAULTS, RequestDefaults, SamplingDefaults
from parallm_openai.text.templates import ChatTemplate


def asked(**fields: Any) -> SamplingParams:
    """The sampling parameters of a request: a field that is None, or not there, is left to the defaults."""
    said = {name: value for name, value in fields.items() if value is not None}
    return SamplingParams(**{"max_tokens": None, **said}, unsaid=DEFAULTABLE - said.keys())


@dataclass(frozen=True)
class Defaults:
    """Sampling parameters, and variables of the chat template."""

    sampling: SamplingDefaults = NO_DEFAULTS
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: LoadedModel, chosen: RequestDefaults | None = None) -> Defaults:
        """The defaults for a model, as the user has chosen them.

        Raises ModelLoadError for a generation config that cannot be read, and for a variable that the chat template
        does not take from outside.
        """
        chosen = chosen or RequestDefaults()
        variables = chosen.chat_template_args or {}
        if variables and (taken := ChatTemplate(model.tokenizer).reserved & variables.keys()):
            raise ModelLoadError(f"--chat-template-args: {min(taken)} cannot be set: the server sets it itself")
        said = chosen.model_dump(include={*SamplingDefaults.model_fields}, exclude_none=True)
        return cls(_recommended(model, chosen.generation_config).model_copy(update=said), variables)

    def filled(self, sampling: SamplingParams) -> SamplingParams:
        """The same parameters with the defaults for what the request did not say."""
        known = {name: value for name in sampling.unsaid if (value := getattr(self.sampling, name)) is not None}
        # -1 is off, as in requests.
        if "top_k" in known:
            known["top_k"] = max(known["top_k"], 0)
        return replace(sampling, unsaid=frozenset(), **known)

    def in_force(self) -> dict[str, Any]:
        """The value of every parameter that has a default, by its name. `max_tokens` None is the surface's own."""
        filled = self.filled(asked())
        return {**{name: getattr(filled, name) for name in sorted(DEFAULTABLE)}, "max_tokens": self.sampling.max_tokens}


def _recommended(model: LoadedModel, source: str) -> SamplingDefaults:
    match source:
        case "auto":
            return model.sampling
        case "none":
            return NO_DEFAULTS
        case folder:
            try:
                return read_generation_config(Path(folder).expanduser(), strict=True)
            except (OSError, ValueError) as error:
                raise ModelLoadError(f"--generation-config: {error}") from error
