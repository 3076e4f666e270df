"""Tiny random-weight models of many families, built by mlx-lm itself.

Sliding windows are shorter than the tests' sequences, and the weights larger than the initialiser's, so
that a wrong mask or position shows in the logits.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from support.family_parts import EXPERTS, PLAIN, VOCAB, WINDOW
from support.recurrent_families import RECURRENT

_SLIDING = ["sliding_attention", "full_attention"]
_DEEPSEEK: dict[str, Any] = {
    **PLAIN,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 128,
    },
}

# Plain keys and values in every layer, windows included: served by the engine's own ragged cache.
RAGGED: dict[str, dict[str, Any]] = {
    "llama": PLAIN,
    "llama_long_rope": {
        **PLAIN,
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "llama_sliding": {
        **PLAIN,
        "model_type": "llama",
        "num_hidden_layers": 4,
        "layer_types": _SLIDING * 2,
        "sliding_window": WINDOW,
    },
    "mistral": {**PLAIN, "head_dim": 16},
    "ministral3": {
        **PLAIN,
        "layer_types": _SLIDING,
        "sliding_window": WINDOW,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "default",
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mistral3": {"text_config": {**PLAIN, "model_type": "llama"}},
    "qwen2": PLAIN,
    "qwen2_moe": {
        **PLAIN,
        **EXPERTS,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen3": {**PLAIN, "head_dim": 16},
    "qwen3_moe": {**PLAIN, **EXPERTS, "head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    "gemma": {**PLAIN, "head_dim": 8},
    "gemma2": {**PLAIN, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **PLAIN,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    "gemma4_text": {
        **PLAIN,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "global_head_dim": 16,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "sliding_window": WINDOW,
        "layer_types": _SLIDING * 2,
    },
    "phi3": PLAIN,
    "phimoe": {
        **PLAIN,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "original_max_position_embeddings": 512,
        "rope_scaling": {
            "long_factor": [1.0] * 4,
            "short_factor": [1.0] * 4,
            "long_mscale": 1.0,
            "short_mscale": 1.0,
        },
    },
    "mixtral": {**PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        **PLAIN,
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": _SLIDING,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 128,
        },
    },
    "cohere2": {
        **PLAIN,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "layer_norm_eps": 1e-5,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    "olmo3": {
        **PLAIN,
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": _SLIDING * 2,
    },
    "exaone4": {
        **PLAIN,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "sliding_window_pattern": "LG",
        "layer_types": _SLIDING * 2,
        "rope_scaling": None,
    },
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": {
        **PLAIN,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
    },
    "glm4": {
        **PLAIN,
        "head_dim": 8,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "rope_traditional": True,
    },
    "starcoder2": {**PLAIN, "norm_epsilon": 1e-5},
}

# What the engine's ragged cache gets wrong or fails on; mlx-lm's batch caches may do.
MISFITS: dict[str, dict[str, Any]] = {
    "deepseek_v32": {**_DEEPSEEK, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 6},
    "gpt_bigcode": {
        "n_embd": 32,
        "n_layer": 2,
        "n_inner": 64,
        "n_head": 4,
        "n_positions": 64,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": VOCAB,
    },
    "afm7": {
        "vocab_size": VOCAB,
        "hidden_dim": 32,
        "num_layers": 2,
        "num_kv_reuse_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
    "gemma3n": {
        "text_config": {
            **PLAIN,
            "model_type": "gemma3n_text",
            "num_hidden_layers": 4,
            "intermediate_size": [64] * 4,
            "head_dim": 8,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCAB,
            "sliding_window": WINDOW,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": _SLIDING * 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 4,
        }
    },
    "llama4": {
        "text_config": {
            **PLAIN,
            "model_type": "llama4_text",
            "num_hidden_layers": 4,
            "attention_bias": False,
            "attention_chunk_size": WINDOW,
            "head_dim": 8,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 64,
            "num_experts_per_tok": 1,
            "num_local_experts": 4,
            "rope_scaling": None,
            "use_qk_norm": True,
        }
    },
}

FAMILIES = {**RAGGED, **RECURRENT, **MISFITS}


def config(family: str) -> dict[str, Any]:
    """The family's `config.json`."""
    return {"model_type": family, **FAMILIES[family]}


@cache
def model(family: str) -> nn.Module:
    return build(config(family))


def build(settings: dict[str, Any], seed: int = 0) -> nn.Module:
    """A model of that configuration with random float32 weights."""
    kind = {"mistral": "llama"}.get(settings["model_type"], settings["model_type"])
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(seed)
    built = module.Model(module.ModelArgs.from_dict(settings))
    built.eval()
    built.update(tree_map_with_path(_wilder, built.parameters()))
    mx.eval(built.parameters())
    return built


def _wilder(name: str, weight: mx.array) -> mx.array:
    """Weights that tell tokens and positions apart; norms and state-space constants stay as they are."""
    if not mx.issubdtype(weight.dtype, mx.floating):
        return weight
    if weight.ndim < 2 or "A_log" in name or "conv" in name:
        # Zero-initialised vectors (biases, sinks, mixing rates) would hide mistakes.
        return weight + 0.1 * mx.random.normal(weight.shape)
    return 2.0 * mx.random.normal(weight.shape) * weight.shape[-1] ** -0.5


def arrays(model: nn.Module) -> dict[str, mx.array]:
    """The model's parameters by their names."""
    return dict(tree_flatten(model.parameters()))


def write(family: str, folder: Path, *, dtype: mx.Dtype = mx.float16, built: nn.Module | None = None) -> Path:
    """Write the family's tiny model as a folder that `mlx_lm.load` reads; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in arrays(built or model(family)).items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps({**config(family), "eos_token_id": 1}))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, tokens: dict[str, int] | None = None) -> None:
    """A tokenizer of single characters: id 0 is unknown, 1 ends a text."""
    vocabulary = tokens or character_vocabulary()
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def character_vocabulary() -> dict[str, int]:
    characters = [chr(code) for code in range(32, 32 + VOCAB - 2 - 33)]
    return {token: index for index, token in enumerate(["<unk>", "</s>", *characters])}
