"""Take a model away: a fetched one, or one in the hub's cache. Nothing outside these two is ever touched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree

from parallm_openai.catalog.errors import CatalogError
from parallm_openai.catalog.listing import hub_repositories
from parallm_openai.models.named import NAMED, NamedModel


@dataclass(frozen=True)
class Removal:
    """What `carry_out` would remove: where it is, and how many bytes that frees."""

    name: str
    path: Path
    size: int
    carry_out: Callable[[], None]


def removal_of(name: str) -> Removal:
    """The removal of a model by its name or hub id; nothing is removed yet. Raises CatalogError.

    A path is no name: it is compared with the names that the caches hold, and never opened.
    """
    named = NAMED.get(name)
    if named is not None:
        return _of_named(named)
    for repository in hub_repositories():
        if repository.repo_id == name:
            # The library itself removes by commit, which copies of a repository have in common.
            return Removal(name, repository.repo_path, repository.size_on_disk, partial(rmtree, repository.repo_path))
    raise CatalogError(f"there is no model {name} among the fetched ones and in the hub's cache")


def _of_named(model: NamedModel) -> Removal:
    if model.wheel is None:
        raise CatalogError(f"{model.name} is a part of the package, and cannot be removed")
    if not model.is_here:
        raise CatalogError(f"{model.name} has not been fetched")
    path = model.path

    def carry_out() -> None:
        path.unlink()
        # Whatever else lies there is not ours.
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    return Removal(model.name, path, path.stat().st_size, carry_out)
