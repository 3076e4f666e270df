"""A model without its weights: its config, its network with lazy arrays, its tokenizer. Importing this imports mlx."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, make_prompt_cache
from mlx_lm.utils import get_total_parameters, load_tokenizer

from parallm_openai.catalog.errors import CatalogError
from parallm_openai.models import weights
from parallm_openai.models.chat_template import missed_chat_template
from parallm_openai.models.gguf import quantisation
from parallm_openai.models.gguf.checkpoint import Checkpoint, open_checkpoint
from parallm_openai.models.gguf.finding import GgufError, gguf_file
from parallm_openai.models.load_error import sentence
from parallm_openai.models.loading import context_length
from parallm_openai.models.mixers import KNOWN_LAYERS, leaves

FLOAT32 = 4


@dataclass(frozen=True)
class Header:
    """What a model's files say before a weight is read.

    `quantisation` is in words. `weight_bytes` is what the weights will take once loaded on this device, `token_bytes`
    what a token of context takes in a row's cache, and `state_bytes` what a row's recurrent states take at any length;
    both are None if the model has layers of another kind. `vocabulary` is the tokenizer's, token to id.
    """

    path: Path
    config: dict[str, Any]
    parameters: int
    quantisation: str
    weight_bytes: int
    token_bytes: int | None
    state_bytes: int | None
    vocabulary: dict[str, int]

    @property
    def context_length(self) -> int:
        return context_length(self.config)

    @property
    def speculates(self) -> bool:
        """Whether its cache can be rolled back. The check at load has the last word."""
        return self.token_bytes is not None


def read_header(path: Path) -> Header:
    """Read a model's folder or GGUF file. Raises CatalogError."""
    try:
        gguf = gguf_file(path)
        return _of_folder(path) if gguf is None else _of_checkpoint(open_checkpoint(gguf))
    except GgufError as error:
        raise CatalogError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        # mlx-lm raises whatever a damaged config makes it stumble over.
        raise CatalogError(f"{path} cannot be read: {sentence(error)}") from error


def _of_folder(path: Path) -> Header:
    network, config = weights.read(path, None, trust_remote_code=False)
    template = missed_chat_template(path)
    tokenizer = load_tokenizer(path, {} if template is None else {"chat_template": template})
    parameters = int(get_total_parameters(network))
    plain = weights.on_plain_cpu()
    return Header(
        path=path,
        config=config,
        parameters=parameters,
        quantisation=_folder_quantisation(network, config),
        weight_bytes=parameters * FLOAT32 if plain else weights.weight_bytes(network),
        **_cache_bytes(network, FLOAT32 if plain else weights.compute_dtype(network).size),
        vocabulary=dict(tokenizer.get_vocab()),
    )


def _of_checkpoint(checkpoint: Checkpoint) -> Header:
    tensors = checkpoint.tensors.values()
    sizes = {name: tensor.rows * tensor.shape[-1] for name, tensor in checkpoint.tensors.items()}
    parameters = sum(sizes.values())
    plain = weights.on_plain_cpu()
    kinds = Counter(tensor.kind.name for tensor in tensors if len(tensor.shape) > 1)
    bits = {name: _bits_in_memory(tensor.kind, len(tensor.shape)) for name, tensor in checkpoint.tensors.items()}
    return Header(
        path=checkpoint.file.path,
        config=checkpoint.config,
        parameters=parameters,
        quantisation=", ".join(f"{kind} in {count}" for kind, count in kinds.most_common()) + " matrices",
        weight_bytes=parameters * FLOAT32 if plain else sum(sizes[name] * bits[name] for name in sizes) // 8,
        **_cache_bytes(checkpoint.network, FLOAT32 if plain else FLOAT32 // 2),
        vocabulary=dict(checkpoint.tokenizer().get_vocab()),
    )


def _bits_in_memory(kind: quantisation.Kind, axes: int) -> int:
    """The bits that a weight takes once it is in MLX's form, with its share of a scale and a bias; else 16."""
    bits = quantisation.bits(kind) if axes > 1 else None
    return 16 if bits is None else bits + 1


def _folder_quantisation(network: nn.Module, config: dict[str, Any]) -> str:
    stated = config.get("quantization") or config.get("quantization_config")
    if isinstance(stated, dict) and "bits" in stated:
        group = f", groups of {stated['group_size']}" if "group_size" in stated else ""
        return f"{stated['bits']} bits{group}"
    return f"none ({str(weights.compute_dtype(network)).removeprefix('mlx.core.')})"


def _cache_bytes(network: nn.Module, number_bytes: int) -> dict[str, int | None]:
    """What a token's keys and values take in all layers, and a row's states: a lazy forward knows their shapes."""
    cache = make_prompt_cache(network)
    layers = list(leaves(cache))
    if not all(isinstance(layer, KNOWN_LAYERS) for layer in layers):
        return {"token_bytes": None, "state_bytes": None}
    network(mx.array([[0]]), cache=cache)
    recurrent = [array for layer in layers if isinstance(layer, ArraysCache) for array in layer.cache]
    attention = [layer for layer in layers if not isinstance(layer, ArraysCache)]
    buffers = [buffer for layer in attention for buffer in (layer.keys, layer.values) if buffer is not None]
    return {
        "token_bytes": sum(buffer.shape[1] * buffer.shape[3] for buffer in buffers) * number_bytes,
        "state_bytes": sum(array.nbytes for array in recurrent if array is not None),
    }
