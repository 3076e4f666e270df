"""The two sizes, how they are built, and the folders they are written to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from demo_training.chatml import END, END_OF_TEXT
from demo_training.tokenizer import VOCAB_SIZE, write_json, write_tokenizer


@dataclass(frozen=True)
class Size:
    """The dimensions of a Llama-architecture model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int


TARGET = Size(hidden=256, layers=4, heads=4, kv_heads=2, ffn=704)
DRAFT = Size(hidden=128, layers=2, heads=2, kv_heads=1, ffn=352)


def config(size: Size) -> dict[str, Any]:
    """`config.json` as `transformers` and `mlx_lm` read it, without the token ids."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.ffn,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "torch_dtype": "float16",
    }


def build(size: Size) -> Model:
    """A model with fresh float32 weights."""
    model = Model(ModelArgs.from_dict(config(size)))
    mx.eval(model.parameters())
    return model


def named(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree of parameters by their full names."""
    flat: Any = tree_flatten(tree)
    return dict(flat)


def parameter_count(model: Model) -> int:
    return sum(array.size for array in named(model.parameters()).values())


def save(model: Model, size: Size, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything `mlx_lm.load` needs, the weights as float16."""
    write_tokenizer(tokenizer, folder)
    ends = [tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)]
    ids = {"eos_token_id": ends, "pad_token_id": ends[1]}
    write_json(folder / "config.json", {**config(size), **ids})
    write_json(folder / "generation_config.json", {**ids, "do_sample": False})
    weights = named(tree_map(lambda w: w.astype(mx.float16), model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def load_weights(size: Size, folder: Path) -> Model:
    """The model saved in `folder`, in float32."""
    model = build(size)
    model.load_weights(str(folder / "model.safetensors"))
    model.update(tree_map(lambda w: w.astype(mx.float32), model.parameters()))
    mx.eval(model.parameters())
    return model
