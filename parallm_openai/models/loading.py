"""Load a model as mlx-lm does, in the types that its device computes well in."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_adapters, load_model, load_tokenizer

log = logging.getLogger(__name__)

FALLBACK_CONTEXT = 4096
WANTED_FILES = ["*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]


class ModelLoadError(Exception):
    """A model that cannot be loaded, with a sentence a user can act on."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and what a server needs to know of it.

    `vocab_size` is the width of its logits, `context_length` the most tokens of prompt and output together.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    name: str
    path: Path
    context_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    dtype: mx.Dtype
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls, model: nn.Module, tokenizer: TokenizerWrapper, config: dict[str, Any], *, name: str, path: Path
    ) -> LoadedModel:
        """Wrap a model and tokenizer that are already in memory, as `mlx_lm.load` returns them."""
        return cls(
            model=model,
            tokenizer=tokenizer,
            config=config,
            name=name,
            path=path,
            context_length=context_length(config),
            vocab_size=_logits_width(model),
            eos_token_ids=frozenset(int(token) for token in tokenizer.eos_token_ids),
            dtype=compute_dtype(model),
        )


def load(
    path_or_id: str | Path,
    *,
    adapter_path: str | None = None,
    name: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> LoadedModel:
    """Load a local folder or a hub id; on a plain CPU dequantised and in float32.

    Raises ModelLoadError where there is no such model, no network for one that is not cached,
    a file is missing or broken, or mlx-lm does not know the architecture.
    """
    path = _find(str(path_or_id), revision)
    _check_files(path)
    try:
        model, config = load_model(path, lazy=True, trust_remote_code=trust_remote_code)
        if adapter_path is not None:
            model = load_adapters(model, adapter_path)
            model.eval()
    except Exception as error:
        raise ModelLoadError(f"{path_or_id} cannot be loaded: {error}") from error
    try:
        options = {"trust_remote_code": True} if trust_remote_code else None
        tokenizer = load_tokenizer(path, options, eos_token_ids=_eos_ids(config))
    except Exception as error:
        raise ModelLoadError(f"the tokenizer of {path_or_id} cannot be loaded: {error}") from error
    if on_plain_cpu():
        model = _for_cpu(model)
    mx.eval(model.parameters())
    return LoadedModel.of(model, tokenizer, config, name=name or _served_name(path_or_id, path), path=path)


def on_plain_cpu() -> bool:
    """Whether MLX computes on a CPU without native half precision (Linux without CUDA)."""
    return mx.default_device().type == mx.DeviceType.cpu and not mx.metal.is_available()


def _find(path_or_id: str, revision: str | None) -> Path:
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelLoadError(f"{path_or_id} is a file; a model is a folder with config.json and *.safetensors")
    if path_or_id.count("/") != 1 or path_or_id.startswith((".", "/", "~")):
        raise ModelLoadError(f"there is no model folder {path_or_id}, and it is not a hub id (owner/name)")
    try:
        return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=WANTED_FILES))
    except HFValidationError as error:
        raise ModelLoadError(f"{path_or_id} is neither a folder nor a hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        return _cached(path_or_id, revision, error)


def _cached(model_id: str, revision: str | None, reason: Exception) -> Path:
    try:
        found = snapshot_download(
            model_id, revision=revision, allow_patterns=WANTED_FILES, local_files_only=True
        )
    except Exception:
        first = str(reason).strip().splitlines()[0]
        raise ModelLoadError(
            f"{model_id} is not in the local cache and could not be downloaded ({first}); "
            "give a local folder, or check the id and the network"
        ) from reason
    log.warning("the hub could not be reached; %s comes from the local cache", model_id)
    return Path(found)


def _check_files(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelLoadError(f"{path} has no config.json, so it is not a model folder")
    if not any(path.glob("model*.safetensors")):
        raise ModelLoadError(f"{path} has no model*.safetensors; convert the model with `mlx_lm.convert` first")
    tokenizers = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any((path / name).is_file() for name in tokenizers) and not any(path.glob("*.tiktoken")):
        raise ModelLoadError(f"{path} has no tokenizer (tokenizer.json or tokenizer.model)")


def _eos_ids(config: dict[str, Any]) -> list[int] | None:
    eos = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    if eos is None:
        return None
    return list(eos) if isinstance(eos, list) else [eos]


def _for_cpu(model: nn.Module) -> nn.Module:
    """Dequantised and in float32: half precision and quantised products crawl on a CPU."""
    model = dequantize_model(model)

    def widened(weight: mx.array) -> mx.array:
        return weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) else weight

    model.update(tree_map(widened, model.parameters()))
    return model


def compute_dtype(model: nn.Module) -> mx.Dtype:
    """The type of the model's activations: that of its norms and other small float weights."""
    floats = [
        weight.dtype for _, weight in tree_flatten(model.parameters()) if mx.issubdtype(weight.dtype, mx.floating)
    ]
    return max(set(floats), key=floats.count) if floats else mx.float32


def context_length(config: dict[str, Any]) -> int:
    """How many tokens the model was made for; `FALLBACK_CONTEXT` where its config does not say."""
    for section in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "model_max_length"):
            value = section.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return FALLBACK_CONTEXT


def _logits_width(model: nn.Module) -> int:
    """Asked of the model itself: configs, tokenizers and padded heads disagree."""
    return int(model(mx.array([[0]])).shape[-1])


def _served_name(path_or_id: str | Path, path: Path) -> str:
    return path.resolve().name if Path(path_or_id).expanduser().exists() else str(path_or_id)


def check_same_tokenizer(target: LoadedModel, draft: LoadedModel) -> None:
    """Raise ModelLoadError unless every id that both models have means the same token.

    A padded vocabulary is no difference: ids without a token are not compared.
    """
    ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    by_id = {index: token for token, index in ours.items()}
    differing = sorted(
        (index, by_id[index], token) for token, index in theirs.items() if by_id.get(index, token) != token
    )
    missing = sorted(set(theirs.values()) - set(by_id))
    if differing:
        index, own, other = differing[0]
        raise ModelLoadError(
            f"the draft's tokenizer is not the target's: {len(differing)} ids differ, the first being {index}, "
            f"which is {own!r} in the target and {other!r} in the draft"
        )
    if len(missing) > len(theirs) // 100 + 64:
        raise ModelLoadError(
            f"the draft's tokenizer is not the target's: it has {len(missing)} ids that the target has not, "
            f"{missing[0]} to {missing[-1]}"
        )
