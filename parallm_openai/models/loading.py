"""Load a model as mlx-lm does, in the types that its device computes well in."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError

from parallm_openai.cpu import prepare
from parallm_openai.models.chat_template import Template, missed_chat_template, template_beside
from parallm_openai.models.embedding import EmbeddingTraits, embedding_traits
from parallm_openai.models.finding import find_model
from parallm_openai.models.generation_config import FILE as GENERATION_CONFIG
from parallm_openai.models.generation_config import gguf_sampling, read_generation_config
from parallm_openai.models.gguf.finding import GgufError, gguf_file
from parallm_openai.models.load_error import ModelLoadError, sentence
from parallm_openai.models.named import NAMED
from parallm_openai.models.vocabulary import difference
from parallm_openai.settings import NO_DEFAULTS, SamplingDefaults

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from parallm_openai.distributed.ranks import Ranks

__all__ = ["LoadedModel", "ModelLoadError", "check_same_tokenizer", "context_length", "load"]

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


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and what a server needs to know of it.

    `vocab_size` is the width of its logits, `context_length` the most tokens of prompt and output together, `sampling`
    what its makers recommend. `embedding` says how it makes embeddings, if it is made for that. `ranks` are the
    processes that share it, if it is not all here.
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
    sampling: SamplingDefaults = NO_DEFAULTS
    embedding: EmbeddingTraits | None = None
    ranks: Ranks | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def weight_bytes(self) -> int:
        from parallm_openai.models import weights

        return weights.weight_bytes(self.model)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        config: dict[str, Any],
        *,
        name: str,
        path: Path,
        sampling: SamplingDefaults = NO_DEFAULTS,
        embedding: EmbeddingTraits | None = None,
        ranks: Ranks | None = None,
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
        longest = context_length(config)
        if embedding is not None and embedding.most_tokens is not None:
            longest = min(longest, embedding.most_tokens)
        return cls(
            model=model,
            tokenizer=tokenizer,
            config=config,
            name=name,
            path=path,
            context_length=longest,
            vocab_size=vocab_size,
            eos_token_ids=_eos_token_ids(tokenizer),
            dtype=weights.compute_dtype(model),
            sampling=sampling,
            embedding=embedding,
            ranks=ranks,
        )


def load(
    path_or_id: str | Path,
    *,
    adapter_path: str | Path | None = None,
    chat_template: str | Path | None = None,
    name: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    found: Callable[[Path], None] = lambda place: None,
    ranks: Ranks | None = None,
) -> LoadedModel:
    """Load a named model, a local folder, a GGUF file or a hub id; on a plain CPU dequantised and in float32.

    `chat_template` is a file, or a template itself, in place of the model's own. `found` is called with the model's
    place once it is here, before it is read. If `ranks` share the model, all of them must load it at the same time.
    Prepares the process for that CPU first (`parallm_openai.prepare`). Raises ModelLoadError if there is no such
    model, no network for one that is not cached, a file is missing or broken, or mlx-lm does not know the architecture.
    """
    prepare()
    # This imports mlx, which must not come before.
    from parallm_openai.models import weights

    named = NAMED.get(str(path_or_id))
    path = find_model(str(path_or_id), revision)
    found(path)
    adapter = None if adapter_path is None else Path(adapter_path).expanduser()
    if adapter is not None:
        _check_adapter(adapter)
    template = None if chat_template is None else _read_template(chat_template)
    try:
        gguf = gguf_file(path)
    except GgufError as error:
        raise ModelLoadError(str(error)) from error
    embedding = None
    if gguf is not None:
        model, config, tokenizer, sampling = _read_gguf(gguf, adapter, template or _template_beside(path))
        # What lies beside a file counts if the folder was named, as for other models.
        sampling = read_generation_config(path) if (path / GENERATION_CONFIG).is_file() else sampling
        path = gguf
    else:
        stated = _check_files(path)
        embedding = embedding_traits(path, stated)
        if embedding is not None and adapter is not None:
            raise ModelLoadError(f"{path_or_id} is an embedding model, which takes no adapter")
        model, config, tokenizer = _read_folder(
            path, adapter, str(path_or_id), trust_remote_code, template, embeds=embedding is not None
        )
        sampling = read_generation_config(path)
    if template is not None:
        _check_template(tokenizer, str(chat_template))
    if named is not None and named.sampling:
        sampling = SamplingDefaults(**named.sampling)
    if ranks is not None and embedding is not None:
        raise ModelLoadError(f"{path_or_id} is an embedding model, which no ranks can share")
    try:
        model = _made_ready(model, config, ranks)
        served_name = _served_name(str(path_or_id), path) if named is None else named.served_name
        called = name or served_name
        loaded = LoadedModel.of(
            model, tokenizer, config, name=called, path=path, sampling=sampling, embedding=embedding, ranks=ranks
        )
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(f"{path_or_id} is loaded but cannot be run: {sentence(error)}") from error
    if weights.on_plain_cpu():
        weights.use_huge_pages(model)
    return loaded


def _made_ready(model: nn.Module, config: dict[str, Any], ranks: Ranks | None) -> nn.Module:
    """The model, or this rank's share of it, evaluated and in the types that its device computes well in."""
    from parallm_openai.models import weights

    def split(whole: nn.Module) -> None:
        if ranks is not None:
            ranks.split(whole, config)

    if weights.on_plain_cpu():
        model = weights.for_cpu(model, split)
    elif ranks is not None:
        # A share of an adapter is none of its product.
        weights.fuse_adapters(model)
        split(model)
    weights.evaluate(model)
    return model


def _read_folder(
    path: Path, adapter: Path | None, named: str, trust_remote_code: bool, template: str | None, *, embeds: bool
) -> tuple[nn.Module, dict[str, Any], TokenizerWrapper]:
    from mlx_lm.utils import load_tokenizer

    from parallm_openai.models import weights

    try:
        if embeds:
            model, config = weights.read_embedding_model(path)
        else:
            model, config = weights.read(path, adapter, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelLoadError(f"{named} cannot be loaded: {sentence(error)}") from error
    try:
        tokenizer = load_tokenizer(
            path, _tokenizer_options(path, trust_remote_code, template), eos_token_ids=_configured_eos(config)
        )
    except Exception as error:
        raise ModelLoadError(f"the tokenizer of {named} cannot be loaded: {sentence(error)}") from error
    return model, config, tokenizer


def _read_gguf(
    path: Path, adapter: Path | None, template: Template | None
) -> tuple[nn.Module, dict[str, Any], TokenizerWrapper, SamplingDefaults]:
    """The same from a GGUF file, and what its metadata say of sampling.

    Weights come last: by then nothing else can be refused.
    """
    from parallm_openai.models import weights
    from parallm_openai.models.gguf.checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
        tokenizer = checkpoint.tokenizer(template)
        sampling = gguf_sampling(checkpoint.file.metadata, str(path))
        model = checkpoint.model(dequantised=weights.on_plain_cpu())
        return weights.adapted(model, adapter), checkpoint.config, tokenizer, sampling
    except (TypeError, AttributeError, ArithmeticError, LookupError) as error:
        # What values of the wrong kind make the libraries stumble over.
        said = f"its metadata make no sense ({type(error).__name__}: {sentence(error)})"
        raise ModelLoadError(f"{path} cannot be loaded: {said}") from error
    except Exception as error:
        raise ModelLoadError(f"{path} cannot be loaded: {sentence(error)}") from error


@cache
def _warn_if_slow() -> None:
    """Say once in the log that products are slow on this CPU, and why, unless the user has chosen that."""
    blas = prepare().blas
    if not blas.optimised and not blas.as_wished:
        log.warning("MLX multiplies matrices slowly on this CPU: %s", blas.detail)


def _read_template(file_or_text: str | Path) -> str:
    # No file has such a name, and a template without either says nothing of the conversation.
    if isinstance(file_or_text, str) and any(mark in file_or_text for mark in ("{{", "{%")):
        return file_or_text
    file = Path(file_or_text).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ModelLoadError(f"the chat template {file} cannot be read: {reason}") from error


def _template_beside(folder: Path) -> Template | None:
    try:
        return template_beside(folder)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the chat template beside the model cannot be read: {error}") from error


def _check_template(tokenizer: TokenizerWrapper, file: str) -> None:
    """Raise ModelLoadError if the template is no Jinja. What it makes of conversations is its own affair."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ModelLoadError(f"the chat template {file} is no Jinja: line {error.lineno}: {error.message}") from error
    except Exception:
        log.debug("the chat template refuses a short conversation", exc_info=True)


def _tokenizer_options(path: Path, trust_remote_code: bool, template: str | None) -> dict[str, Any]:
    # The engine itself checks lengths: the tokenizer would print a warning for what is then refused.
    options: dict[str, Any] = {"model_max_length": NO_LIMIT}
    if trust_remote_code:
        options["trust_remote_code"] = True
    found = template or missed_chat_template(path)
    return options if found is None else options | {"chat_template": found}


def _check_files(path: Path) -> dict[str, Any]:
    """The config of a model folder. Raises ModelLoadError for a folder that is none."""
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
    return content


def _check_adapter(path: Path) -> None:
    for name in ("adapter_config.json", "adapters.safetensors"):
        if not (path / name).is_file():
            raise ModelLoadError(f"the adapter {path} has no {name}")


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
    """Raise ModelLoadError unless every id that both models have means the same token."""
    found = difference(target.tokenizer.get_vocab(), draft.tokenizer.get_vocab())
    if found is not None:
        raise ModelLoadError(
            f"the draft's tokenizer is not the target's: {found}. Take another draft, or drafts by suffix"
        )
