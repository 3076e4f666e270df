"""How a model's makers would have it sampled: `generation_config.json`, and the metadata of GGUF files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from parallm_openai.settings import NO_DEFAULTS, SamplingDefaults

log = logging.getLogger(__name__)

FILE = "generation_config.json"
# The fields that count, and their keys in the `gguf` package. Lengths are no recommendation: files hold what the tool
# that wrote them had as its default.
FIELDS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def read_generation_config(folder: Path, *, strict: bool = False) -> SamplingDefaults:
    """What the folder's `generation_config.json` recommends; nothing if there is no such file.

    What it cannot mean is left out with a warning. If `strict`, that raises ValueError, and a missing file OSError.
    """
    file = folder / FILE
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError:
        if strict:
            raise FileNotFoundError(f"{folder} has no {FILE}") from None
        return NO_DEFAULTS
    except (OSError, ValueError) as error:
        if strict:
            raise ValueError(f"{file} cannot be read: {error}") from error
        log.warning("%s cannot be read, and is not used: %s", file, error)
        return NO_DEFAULTS
    return _valid({name: content[name] for name in FIELDS if content.get(name) is not None}, str(file), strict=strict)


def gguf_sampling(metadata: Mapping[str, Any], file: str) -> SamplingDefaults:
    """What a GGUF file's metadata recommend."""
    return _valid({name: metadata[key] for name, key in FIELDS.items() if key in metadata}, file, strict=False)


def _valid(found: Mapping[str, Any], file: str, *, strict: bool) -> SamplingDefaults:
    """The fields that requests could have, too."""
    valid = {}
    for name, value in found.items():
        try:
            valid[name] = getattr(SamplingDefaults.model_validate({name: value}, strict=True), name)
        except ValidationError as error:
            said = f"{file}: {name} is {str(value)[:40]!r}: {error.errors()[0]['msg']}"
            if strict:
                raise ValueError(said) from error
            log.warning("%s; it is not used", said)
    return SamplingDefaults(**valid)
