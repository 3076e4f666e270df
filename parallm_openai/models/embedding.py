"""Checkpoints of embedding models: decoders with the files of sentence-transformers, which say how to pool."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallm_openai.models.load_error import ModelLoadError

if TYPE_CHECKING:
    import mlx.core as mx

MODULES, LENGTH = "modules.json", "sentence_bert_config.json"
# Parts of a model that change nothing here: the decoder itself, and the scaling that every embedding gets anyway.
KNOWN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})


class Pooling(StrEnum):
    """Which positions' states an embedding is made of."""

    LAST = "lasttoken"
    FIRST = "cls"
    MEAN = "mean"


# The switches of older files; newer ones have the name itself.
SWITCHES = {
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_cls_token": Pooling.FIRST,
    "pooling_mode_mean_tokens": Pooling.MEAN,
}


@dataclass(frozen=True)
class EmbeddingTraits:
    """How a checkpoint makes embeddings, and the most tokens of an input if it says so."""

    pooling: Pooling
    most_tokens: int | None = None


def embedding_traits(folder: Path, config: Mapping[str, Any]) -> EmbeddingTraits | None:
    """What the folder says of embeddings; None if it is no embedding model. Raises ModelLoadError."""
    if not (folder / MODULES).is_file():
        return None
    modules = _read(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelLoadError(f"{folder / MODULES} is not a list of modules")
    kinds = {str(module.get("type")).rpartition(".")[2]: module for module in modules}
    if unknown := kinds.keys() - KNOWN_MODULES:
        raise ModelLoadError(f"{folder} is an embedding model with a part that is not supported: {min(unknown)}")
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        raise ModelLoadError(f"{folder} attends in both directions, which is not supported")
    if "Pooling" not in kinds:
        raise ModelLoadError(f"{folder / MODULES} does not say how to pool")
    return EmbeddingTraits(_pooling(folder / str(kinds["Pooling"].get("path")) / "config.json"), _most_tokens(folder))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} cannot be read as JSON: {error}") from error


def _pooling(file: Path) -> Pooling:
    config = _read(file)
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} is not an object")
    named = config.get("pooling_mode")
    switched_on = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    wanted = [named] if isinstance(named, str) else switched_on
    known = SWITCHES | {pooling.value: pooling for pooling in Pooling}
    if len(wanted) != 1 or wanted[0] not in known:
        raise ModelLoadError(f"{file} asks for pooling that is not supported: {', '.join(wanted) or 'none'}")
    return known[wanted[0]]


def _most_tokens(folder: Path) -> int | None:
    file = folder / LENGTH
    config = _read(file) if file.is_file() else {}
    length = config.get("max_seq_length") if isinstance(config, dict) else None
    return length if isinstance(length, int) and length > 0 else None


def model_config(folder: Path) -> dict[str, Any]:
    """What to change of the config: a decoder without its output projection borrows that of its embeddings."""
    import mlx.core as mx

    names = {name for file in folder.glob("model*.safetensors") for name in mx.load(str(file))}
    return {} if any("lm_head" in name for name in names) else {"tie_word_embeddings": True}


def model_classes(config: dict[str, Any]) -> tuple[type[Any], type[Any]]:
    """mlx-lm's classes of the family, for weights that may be named without the `model.` of a whole language model."""
    from mlx_lm.utils import MODEL_REMAPPING

    family = str(config["model_type"])
    try:
        module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(family, family)}")
    except ImportError as error:
        raise ModelLoadError(f"mlx-lm has no decoder for embedding models of the family {family}") from error

    class Backbone(module.Model):  # type: ignore[misc, name-defined]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            if "embed_tokens.weight" in weights:
                weights = {name if name.startswith("lm_head") else f"model.{name}": weights[name] for name in weights}
            return super().sanitize(weights) if hasattr(module.Model, "sanitize") else weights

    return Backbone, module.ModelArgs
