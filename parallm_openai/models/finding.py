"""Where a model is: a named one, a local folder or file, or one of the hub, downloaded if need be."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from parallm_openai.models.gguf.finding import is_gguf
from parallm_openai.models.load_error import ModelLoadError, sentence
from parallm_openai.models.named import NAMED, NamedModel

log = logging.getLogger(__name__)


def find_model(path_or_id: str, revision: str | None = None) -> Path:
    """The model's folder or GGUF file: a named or local one, else the hub's, else what the hub's cache has.

    Raises ModelLoadError.
    """
    named = NAMED.get(path_or_id)
    return _find(path_or_id, revision) if named is None else _find_named(named)


def _find(path_or_id: str, revision: str | None) -> Path:
    """The model's folder or GGUF file: a local one, else the hub's, else what the hub's cache has."""
    path = Path(path_or_id).expanduser()
    if path.is_dir() or is_gguf(path):
        return path
    if path.exists():
        raise ModelLoadError(
            f"{path_or_id} is a file, but not in GGUF; a model is a folder with config.json and *.safetensors, "
            "or a GGUF file"
        )
    if path_or_id.count("/") > 1 or path_or_id.startswith((".", "/", "~")) or path_or_id.endswith(".gguf"):
        raise ModelLoadError(f"there is no model folder or file {path_or_id}")
    try:
        return _snapshot(path_or_id, revision)
    except HFValidationError as error:
        raise ModelLoadError(f"there is no folder {path_or_id!r}, and it is not a hub id (owner/name)") from error
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{path_or_id} is gated: accept its terms on the hub, then set HF_TOKEN or run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"there is no folder {path_or_id!r}, and the hub has no public model of that name "
            f"(for a private one set HF_TOKEN){_hint(path_or_id)}"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{path_or_id} has no revision {revision!r} on the hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        return _cached(path_or_id, revision, error)


def _hint(model_id: str) -> str:
    """What else a word may have been meant as: few models of the hub have no owner."""
    return "" if "/" in model_id else f"; a hub id is owner/name, and the models with names are {', '.join(NAMED)}"


def _find_named(model: NamedModel) -> Path:
    if not model.is_here:
        raise ModelLoadError(
            f"the model {model.name} has not been fetched yet: run `parallm-openai models fetch {model.name}` "
            f"(a folder of that name is ./{model.name})"
        )
    return model.path


def _snapshot(model_id: str, revision: str | None, *, offline: bool = False) -> Path:
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    return Path(
        snapshot_download(model_id, revision=revision, allow_patterns=DEFAULT_ALLOW_PATTERNS, local_files_only=offline)
    )


def _cached(model_id: str, revision: str | None, reason: Exception) -> Path:
    try:
        found = _snapshot(model_id, revision, offline=True)
    except Exception:
        cause = reason.__cause__ or reason
        raise ModelLoadError(
            f"there is no folder {model_id!r}, it is not in the hub's local cache, and it could not be downloaded "
            f"({sentence(cause)}); give a local folder, or check the network{_hint(model_id)}"
        ) from reason
    log.warning("the hub could not be reached; %s comes from the local cache", model_id)
    return found
