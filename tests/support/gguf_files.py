"""GGUF files of tiny models, written by the `gguf` package: with its names of keys and tensors, not with ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import TokenType

from support import families

# Rows of whole blocks, for all types.
WIDTH = 256
SIZES = {"hidden_size": WIDTH, "intermediate_size": WIDTH}
_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(families.VOCAB - 3))]


@dataclass(frozen=True)
class Family:
    """An mlx-lm config, and how llama.cpp's converter writes a model of it."""

    config: dict[str, Any]
    architecture: str
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, list[float]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    interleaved: bool = False
    norm_offset: float = 0.0


def _config(name: str, **changes: Any) -> dict[str, Any]:
    return {**families.config(name), **changes}


def _llama3_factors(config: Mapping[str, Any], dims: int) -> list[float]:
    """What llama.cpp's converter makes of Llama 3's scaling: by how much each dimension's wavelength grows."""
    scaling = config["rope_scaling"]
    original = scaling["original_max_position_embeddings"]
    factors = []
    for at in range(0, dims, 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (at / dims)
        if wavelength < original / scaling["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > original / scaling["low_freq_factor"]:
            factors.append(scaling["factor"])
        else:
            spread = scaling["high_freq_factor"] - scaling["low_freq_factor"]
            smooth = (original / wavelength - scaling["low_freq_factor"]) / spread
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return factors


_LONG_ROPE = {"type": "longrope", "long_factor": [1.5, 2.0, 3.0], "short_factor": [1.0, 1.0, 1.0]}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
_YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
_GEMMA_KEYS = {"attention.sliding_window": families.WINDOW}

FAMILIES: dict[str, Family] = {
    "llama": Family(_config("llama"), "llama", interleaved=True),
    "llama_tied": Family(_config("llama", tie_word_embeddings=True), "llama", interleaved=True),
    "llama_biased": Family(_config("llama", attention_bias=True, mlp_bias=True), "llama", interleaved=True),
    "llama3": Family(
        _config("llama_long_rope"),
        "llama",
        tensors={"rope_freqs.weight": _llama3_factors(families.config("llama_long_rope"), 8)},
        interleaved=True,
    ),
    "llama_linear": Family(
        _config("llama", rope_scaling={"type": "linear", "factor": 2.0}),
        "llama",
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        interleaved=True,
    ),
    "mistral": Family(_config("mistral"), "llama", {"attention.key_length": 16}, interleaved=True),
    "qwen2": Family(_config("qwen2"), "qwen2"),
    "qwen2_yarn": Family(_config("qwen2", rope_scaling=_YARN), "qwen2", _YARN_KEYS),
    "qwen3": Family(_config("qwen3"), "qwen3", {"attention.key_length": 16}),
    "gemma2": Family(
        _config("gemma2", attn_logit_softcapping=40.0, final_logit_softcapping=20.0),
        "gemma2",
        {"attention.key_length": 8, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0, **_GEMMA_KEYS},
        norm_offset=1.0,
    ),
    # llama.cpp knows this one by its layers: only its queries are divided by something else than their length.
    "gemma2_27b": Family(
        _config("gemma2", num_hidden_layers=46, head_dim=16, query_pre_attn_scalar=8),
        "gemma2",
        _GEMMA_KEYS,
        norm_offset=1.0,
    ),
    "gemma3": Family(
        _config(
            "gemma3_text", rope_scaling={"type": "linear", "factor": 8.0}, rope_theta=1e6, vocab_size=families.VOCAB
        ),
        "gemma3",
        {
            "attention.key_length": 8,
            "attention.sliding_window_pattern": 2,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            **_GEMMA_KEYS,
        },
        norm_offset=1.0,
    ),
    # As Ollama writes the models that have a vision part.
    "gemma3_ollama": Family(
        _config(
            "gemma3_text",
            num_hidden_layers=6,
            sliding_window_pattern=6,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            rope_scaling={"type": "linear", "factor": 8.0},
        ),
        "gemma3",
        {"attention.key_length": 8, "vision.block_count": 27, **_GEMMA_KEYS},
        absent=("attention.layer_norm_rms_epsilon", "rope.freq_base"),
        norm_offset=1.0,
    ),
    "phi3": Family(_config("phi3"), "phi3"),
    "phi3_long": Family(
        _config("phi3", rope_scaling=_LONG_ROPE, partial_rotary_factor=0.75, original_max_position_embeddings=64),
        "phi3",
        {"rope.dimension_count": 6, "rope.scaling.original_context_length": 64},
        {"rope_factors_long.weight": [1.5, 2.0, 3.0], "rope_factors_short.weight": [1.0, 1.0, 1.0]},
    ),
}


def quantised(numbers: np.ndarray, kind: Kind) -> np.ndarray:
    """Blocks of a type that are about these numbers; for types that the library does not write, any valid blocks."""
    if kind not in FREE_BLOCKS:
        return gguf.quants.quantize(numbers, kind)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows = len(numbers)
    generator = np.random.default_rng(numbers.reshape(-1)[:4].view(np.uint32))
    blocks = generator.integers(0, 256, (rows * numbers.shape[1] // values, size), np.uint8)
    scales = generator.uniform(2e-4, 4e-4, len(blocks)).astype(np.float16)
    for at in FREE_BLOCKS[kind]:
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


# Where the float16 scales of a block lie, of the types that the library reads but does not write.
FREE_BLOCKS = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_XS: (0,),
}


def write(
    name: str, path: Path, kind: Kind = Kind.F32, change: Callable[[gguf.GGUFWriter], None] | None = None
) -> nn.Module:
    """Write a tiny model of the family with matrices of that type.

    Returns mlx-lm's model with the numbers that the file's blocks stand for. `change` may add to what is written, or
    replace it.
    """
    family = FAMILIES[name]
    config = dict(family.config)
    if kind not in (Kind.F32, Kind.F16, Kind.BF16):
        config |= SIZES | ({"head_dim": WIDTH // config["num_attention_heads"]} if family.tensors == {} else {})
    model = families.build(config)
    writer = gguf.GGUFWriter(path, family.architecture)
    _write_keys(writer, family, config)
    write_byte_tokens(writer)
    held: dict[str, mx.array] = {}
    names = gguf.get_tensor_name_map(_architecture(family), config["num_hidden_layers"])
    for parameter, array in families.arrays(model).items():
        if parameter == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        tensor = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        assert tensor is not None, parameter
        held[parameter] = mx.array(_write_tensor(writer, family, config, parameter, tensor, np.array(array), kind))
    for tensor, numbers in family.tensors.items():
        writer.add_tensor(tensor, np.array(numbers, np.float32))
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_weights([*held.items()], strict=False)
    return model


def _architecture(family: Family) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)


def _write_keys(writer: gguf.GGUFWriter, family: Family, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    keys = dict(family.keys)
    if "head_dim" in config:
        keys["attention.key_length"] = config["head_dim"]
    for key, value in keys.items():
        full = f"{family.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)
    for key in family.absent:
        del writer.kv_data[0][f"{family.architecture}.{key}"]


def _write_tensor(
    writer: gguf.GGUFWriter,
    family: Family,
    config: Mapping[str, Any],
    parameter: str,
    tensor: str,
    numbers: np.ndarray,
    kind: Kind,
) -> np.ndarray:
    """Write a parameter as llama.cpp's converter does, and return what it has become, in mlx-lm's order."""
    order = np.arange(len(numbers))
    for module, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if family.interleaved and module in parameter:
            order = order.reshape(config[heads], 2, -1).swapaxes(1, 2).reshape(-1)
    offset = family.norm_offset if "norm" in parameter else 0.0
    stored = numbers[order] + np.float32(offset)
    if numbers.ndim == 1:
        writer.add_tensor(tensor, stored)
        return numbers
    blocks = quantised(stored, kind)
    writer.add_tensor(tensor, blocks, raw_dtype=kind)
    held = np.empty_like(numbers)
    held[order] = gguf.quants.dequantize(blocks, kind)
    return held


def write_byte_tokens(writer: gguf.GGUFWriter) -> None:
    """A vocabulary of SentencePiece's kind with a token for each byte of ASCII."""
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * (len(_TOKENS) - 3)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(_TOKENS)
    writer.add_token_scores([0.0] * len(_TOKENS))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
