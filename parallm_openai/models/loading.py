"""Load a model as mlx-lm does, in the types that its device computes well in."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from parallm_openai.cpu import prepare
from parallm_openai.models.chat_template import missed_chat_template
from parallm_openai.models.gguf.finding import GgufError, gguf_file, is_gguf

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

log = logging.getLogger(__name__)

FALLBACK_CONTEXT = 4096
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "model_max_length",
)
# transformers' own value for a tokenizer without a limit.
NO_LIMIT = int(1e30)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")


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

    @property
    def weight_bytes(self) -> int:
        from parallm_openai.models import weights

        return weights.weight_bytes(self.model)

    @classmethod
    def of(
        cls, model: nn.Module, tokenizer: TokenizerWrapper, config: dict[str, Any], *, name: str, path: Path
    ) -> LoadedModel:
        """Wrap a model and tokenizer that are already in memory, as `mlx_lm.load` returns them.

        Must run on the thread that made the model; afterwards any thread may use it.
        """
        prepare()
        from parallm_openai.models import weights

        if weights.on_plain_cpu():
            _warn_if_slow()
        vocab_size = weights.logits_width(model)
        weights.evaluate(model)
        return cls(
            model=model,
            tokenizer=tokenizer,
            config=config,
            name=name,
            path=path,
            context_length=context_length(config),
            vocab_size=vocab_size,
            eos_token_ids=_eos_token_ids(tokenizer),
            dtype=weights.compute_dtype(model),
        )


def load(
    path_or_id: str | Path,
    *,
    adapter_path: str | Path | None = None,
    name: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> LoadedModel:
    """Load a local folder, a GGUF file or a hub id; on a plain CPU dequantised and in float32.

    Prepares the process for that CPU first (`parallm_openai.prepare`). Raises ModelLoadError if there is no such
    model, no network for one that is not cached, a file is missing or broken, or mlx-lm does not know the architecture.
    """
    prepare()
    # This imports mlx, which must not come before.
    from parallm_openai.models import weights

    path = _find(str(path_or_id), revision)
    adapter = None if adapter_path is None else Path(adapter_path).expanduser()
    if adapter is not None:
        _check_adapter(adapter)
    try:
        gguf = gguf_file(path)
    except GgufError as error:
        raise ModelLoadError(str(error)) from error
    if gguf is not None:
        path = gguf
        model, config, tokenizer = _read_gguf(path, adapter)
    else:
        _check_files(path)
        model, config, tokenizer = _read_folder(path, adapter, str(path_or_id), trust_remote_code)
    try:
        if weights.on_plain_cpu():
            model = weights.for_cpu(model)
        weights.evaluate(model)
        loaded = LoadedModel.of(model, tokenizer, config, name=name or _served_name(str(path_or_id), path), path=path)
    except Exception as error:
        raise ModelLoadError(f"{path_or_id} is loaded but cannot be run: {_sentence(error)}") from error
    if weights.on_plain_cpu():
        weights.use_huge_pages(model)
    return loaded


def _read_folder(
    path: Path, adapter: Path | None, named: str, trust_remote_code: bool
) -> tuple[nn.Module, dict[str, Any], TokenizerWrapper]:
    from mlx_lm.utils import load_tokenizer

    from parallm_openai.models import weights

    try:
        model, config = weights.read(path, adapter, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelLoadError(f"{named} cannot be loaded: {_sentence(error)}") from error
    try:
        tokenizer = load_tokenizer(
            path, _tokenizer_options(path, trust_remote_code), eos_token_ids=_configured_eos(config)
        )
    except Exception as error:
        raise ModelLoadError(f"the tokenizer of {named} cannot be loaded: {_sentence(error)}") from error
    return model, config, tokenizer


def _read_gguf(path: Path, adapter: Path | None) -> tuple[nn.Module, dict[str, Any], TokenizerWrapper]:
    """The same from a GGUF file. Weights come last: by then nothing else can be refused."""
    from parallm_openai.models import weights
    from parallm_openai.models.gguf.checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
        tokenizer = checkpoint.tokenizer()
        model = checkpoint.model(dequantised=weights.on_plain_cpu())
        return weights.adapted(model, adapter), checkpoint.config, tokenizer
    except Exception as error:
        raise ModelLoadError(f"{path} cannot be loaded: {_sentence(error)}") from error


@cache
def _warn_if_slow() -> None:
    """Say once in the log that products are slow on this CPU, and why, unless the user has chosen that."""
    blas = prepare().blas
    if not blas.optimised and not blas.as_wished:
        log.warning("MLX multiplies matrices slowly on this CPU: %s", blas.detail)


def _tokenizer_options(path: Path, trust_remote_code: bool) -> dict[str, Any]:
    # The engine itself checks lengths: the tokenizer would print a warning for what is then refused.
    options: dict[str, Any] = {"model_max_length": NO_LIMIT}
    if trust_remote_code:
        options["trust_remote_code"] = True
    template = missed_chat_template(path)
    return options if template is None else options | {"chat_template": template}


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
            "(for a private one set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{path_or_id} has no revision {revision!r} on the hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        return _cached(path_or_id, revision, error)


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
            f"({_sentence(cause)}); give a local folder, or check the network"
        ) from reason
    log.warning("the hub could not be reached; %s comes from the local cache", model_id)
    return found


def _check_files(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise ModelLoadError(f"{path} has no config.json, so it is not a model folder")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{config} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not content.get("model_type"):
        raise ModelLoadError(f"{config} names no model_type")
    if not any(path.glob("model*.safetensors")):
        raise ModelLoadError(f"{path} has no model*.safetensors; convert the model with `mlx_lm.convert` first")
    if not any((path / name).is_file() for name in TOKENIZER_FILES) and not any(path.glob("*.tiktoken")):
        raise ModelLoadError(f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES)} or *.tiktoken)")


def _check_adapter(path: Path) -> None:
    for name in ("adapter_config.json", "adapters.safetensors"):
        if not (path / name).is_file():
            raise ModelLoadError(f"the adapter {path} has no {name}")


def _sentence(error: BaseException) -> str:
    """What an exception says in one line, as its type alone would not tell a user much."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if len(lines) > 1 and text.endswith(":"):
        text = f"{text} {lines[1]}"
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return text[:300].rstrip(".") or type(error).__name__


def _configured_eos(config: dict[str, Any]) -> list[int] | None:
    eos = config.get("eos_token_id")
    if eos is None:
        eos = (config.get("text_config") or {}).get("eos_token_id")
    if eos is None:
        return None
    return list(eos) if isinstance(eos, list) else [eos]


def _eos_token_ids(tokenizer: TokenizerWrapper) -> frozenset[int]:
    """The configured ends and the tokenizer's own, which chat models rely on if their config is stale."""
    found = {*tokenizer.eos_token_ids, tokenizer.eos_token_id}
    return frozenset(int(token) for token in found if token is not None)


def context_length(config: dict[str, Any]) -> int:
    """How many tokens the model was made for, scaled RoPE included.

    A vision model's text part counts before the whole. `FALLBACK_CONTEXT` if the config says
    nothing, as is usual for recurrent families.
    """
    for section in (config.get("text_config") or {}, config):
        stated = [section[key] for key in CONTEXT_KEYS if isinstance(section.get(key), int)]
        length = next((value for value in stated if value > 0), None)
        if length is not None:
            return max(length, _scaled_context(section))
    return FALLBACK_CONTEXT


def _scaled_context(config: dict[str, Any]) -> int:
    """What RoPE scaling stretches the original context to; configs state the one or the other."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if isinstance(factor, (int, float)) and isinstance(original, int):
        return int(factor * original)
    return 0


def _served_name(path_or_id: str, path: Path) -> str:
    if path.is_file():
        return path.name.removesuffix(".gguf")
    return path.resolve().name if Path(path_or_id).expanduser().is_dir() else path_or_id


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
        listed = ", ".join(f"{index} ({own!r} and {other!r})" for index, own, other in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ModelLoadError(
            f"the draft's tokenizer is not the target's: {len(differing)} of {len(theirs)} ids stand for different "
            f"tokens in the target and in the draft: {listed}{more}"
        )
    # A few added tokens do no harm; a hundredth of the vocabulary is another tokenizer.
    if len(missing) > len(theirs) // 100 + 64:
        raise ModelLoadError(
            f"the draft's tokenizer is not the target's: it has {len(missing)} ids that the target has not, "
            f"{missing[0]} to {missing[-1]}"
        )
