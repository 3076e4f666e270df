"""Which of the models here could draft for another. Importing this imports mlx."""

from __future__ import annotations

from pathlib import Path

from parallm_openai.catalog.errors import CatalogError
from parallm_openai.catalog.header import Header, read_header
from parallm_openai.catalog.listing import list_models
from parallm_openai.models.named import NAMED
from parallm_openai.models.vocabulary import difference


def drafters_for(target: Header) -> list[str]:
    """What to give to `--draft-model`: models here that have the same tokenizer, are smaller, and can be rolled back.

    The smallest comes first. Models that cannot be read are passed over. For a target that cannot speculate there are
    none.
    """
    if not target.speculates:
        return []
    found: list[tuple[int, str]] = []
    for name, path in _candidates():
        try:
            header = read_header(path)
        except CatalogError:
            continue
        smaller = header.parameters < target.parameters
        if smaller and header.speculates and difference(target.vocabulary, header.vocabulary) is None:
            found.append((header.parameters, name))
    return [name for _, name in sorted(found)]


def _candidates() -> list[tuple[str, Path]]:
    """The name or path of each model here, and where it is."""
    here = [(entry.name, entry.path) for entry in list_models() if entry.path is not None]
    bundled = [(str(model.draft), model.draft) for model in NAMED.values() if model.draft is not None]
    return [*here, *bundled]
