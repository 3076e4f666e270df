"""How llama.cpp's architectures map to mlx-lm's: metadata to configs, names of tensors to names of parameters.

The names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
What llama.cpp's converter does to weights: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parallm_openai.models.gguf.facts import Facts
from parallm_openai.models.gguf.finding import GgufError
from parallm_openai.models.gguf.reading import GgufFile
from parallm_openai.models.gguf.rope import rope_scaling

Config = dict[str, Any]

_OUTSIDE_LAYERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS_OF_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
# What is not a parameter: RoPE's factors are part of the config, and images are not served.
_NO_PARAMETER = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight|(v|mm)\..*")
_IN_LAYER = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
_OUTSIDE = re.compile(r"(\w+)\.(weight|bias)")

# Ollama leaves out what is the same in all models of a family.
_DEFAULT_EPS = {"gemma3": 1e-6}

# What would make the same tensors compute something else.
_OTHER_ARITHMETIC = (
    "expert_count",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.temperature_scale",
)


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures in mlx-lm's terms.

    `layer` has the name of a layer's module for llama.cpp's. The rows of `interleaved` modules lie in pairs: llama.cpp
    rotates neighbours where mlx-lm rotates halves. `norm_offset` is what llama.cpp's norm weights have above mlx-lm's.
    `half` is the 16-bit type in which the family's activations fit.
    """

    model_type: str
    layer: Mapping[str, str]
    specifics: Callable[[Facts], Config]
    scalings: frozenset[str] = frozenset()
    interleaved: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    half: str = "float16"

    def config(self, file: GgufFile) -> Config:
        """The model's config as its config.json would have it. Raises GgufError for what mlx-lm's code does not do."""
        facts = Facts(file)
        for key in _OTHER_ARITHMETIC:
            if facts.get(key):
                raise GgufError(f"its {facts.architecture}.{key} is {facts.get(key)}, which is not supported")
        if facts.get("attention.causal") is False:
            raise GgufError("its attention is not causal, so it generates no text")
        config = {"model_type": self.model_type, **_common(facts), **self.specifics(facts)}
        scaling = rope_scaling(facts, int(config["head_dim"] * config.get("partial_rotary_factor", 1)))
        if scaling is not None:
            if scaling["type"] not in self.scalings:
                raise GgufError(f"RoPE scaling of the type {scaling['type']} is not supported for {facts.architecture}")
            config["rope_scaling"] = scaling
        return config

    def parameter(self, tensor: str) -> str | None:
        """The parameter that a tensor is, None for one that is no parameter. Raises GgufError for an unknown tensor."""
        if inside := _IN_LAYER.fullmatch(tensor):
            module = self.layer.get(inside[2])
            if module is not None:
                return f"model.layers.{int(inside[1])}.{module}.{inside[3]}"
        outside = _OUTSIDE.fullmatch(tensor)
        if outside and outside[1] in _OUTSIDE_LAYERS:
            return f"{_OUTSIDE_LAYERS[outside[1]]}.{outside[2]}"
        if _NO_PARAMETER.fullmatch(tensor):
            return None
        raise GgufError(f"it has a tensor {tensor[:100]!r}, which its architecture does not have here")


def architecture_of(file: GgufFile) -> Architecture:
    """The file's architecture. Raises GgufError for files that are not a whole language model of a known one."""
    metadata = file.metadata
    if (pieces := metadata.get("split.count", 1)) != 1:
        raise GgufError(f"it is one of {pieces} pieces; join them with `llama-gguf-split --merge` first")
    name = metadata.get("general.architecture")
    kind = metadata.get("general.type", "model")
    if name == "clip" or kind == "mmproj":
        raise GgufError("it is a projector for images (mmproj), not a language model")
    if kind != "model":
        raise GgufError(f"its general.type is {kind!r}, so it is not a model")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise GgufError(f"its architecture is {name!r}; supported as GGUF are {known}")
    return ARCHITECTURES[name]


def _common(facts: Facts) -> Config:
    tensors = facts.file.tensors
    heads, head_dim = facts.whole("attention.head_count"), _head_dim(facts)
    if facts.whole("attention.value_length", default=head_dim) != head_dim:
        raise GgufError("its keys and values differ in length, which is not supported")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise GgufError("it has no tensor token_embd.weight")
    return {
        "hidden_size": facts.whole("embedding_length"),
        "num_hidden_layers": _layers(facts),
        "intermediate_size": facts.whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.whole("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon", default=_DEFAULT_EPS.get(facts.architecture)),
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": facts.whole("context_length"),
        "rope_theta": facts.number("rope.freq_base", default=10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _layers(facts: Facts) -> int:
    """How many layers the model has. As many must be in the file, so that no claim builds layers without end."""
    stated = facts.whole("block_count")
    found = {int(match[1]) for match in map(_IN_LAYER.fullmatch, facts.file.tensors) if match}
    if stated != len(found) or found != set(range(stated)):
        raise GgufError(f"its {facts.architecture}.block_count is {stated}, but it has tensors of {len(found)} layers")
    return stated


def _head_dim(facts: Facts) -> int:
    heads, width = facts.whole("attention.head_count"), facts.whole("embedding_length")
    if heads > width:
        raise GgufError(f"its {facts.architecture}.attention.head_count is {heads}, for vectors of {width}")
    return facts.whole("attention.key_length", default=width // heads)


def _whole_heads_rotate(facts: Facts) -> None:
    rotated = facts.get("rope.dimension_count")
    if rotated not in (None, _head_dim(facts)):
        raise GgufError(f"its RoPE rotates {rotated} dimensions of a head, not all, which is not supported")


def _llama(facts: Facts) -> Config:
    _whole_heads_rotate(facts)
    found = filter(None, map(_IN_LAYER.fullmatch, facts.file.tensors))
    biases = {match[2] for match in found if match[3] == "bias"}
    return {
        "attention_bias": any(name.startswith("attn") for name in biases),
        "mlp_bias": any(name.startswith("ffn") for name in biases),
    }


def _qwen(facts: Facts) -> Config:
    _whole_heads_rotate(facts)
    return {}


def _phi3(facts: Facts) -> Config:
    head_dim = _head_dim(facts)
    rotated = facts.whole("rope.dimension_count", default=head_dim)
    original = facts.whole("rope.scaling.original_context_length", default=facts.whole("context_length"))
    return {"partial_rotary_factor": rotated / head_dim, "original_max_position_embeddings": original}


def _gemma2(facts: Facts) -> Config:
    _whole_heads_rotate(facts)
    return {
        "query_pre_attn_scalar": _query_scalar(facts, layers_of_27b=46),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", default=50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", default=30.0),
    }


def _gemma3(facts: Facts) -> Config:
    _whole_heads_rotate(facts)
    if facts.get("final_logit_softcapping"):
        raise GgufError("its gemma3.final_logit_softcapping is not supported")
    # Those with a vision part have their positions scaled, which Ollama does not state.
    scaling = {"rope_scaling": {"type": "linear", "factor": 8.0}} if facts.get("vision.block_count") else {}
    return {
        **scaling,
        "query_pre_attn_scalar": _query_scalar(facts, layers_of_27b=62),
        # Ollama writes the second name of each.
        "rope_theta": facts.number("rope.freq_base", "rope.global.freq_base", default=1e6),
        "rope_local_base_freq": facts.number("rope.freq_base_swa", "rope.local.freq_base", default=1e4),
        "sliding_window": facts.whole("attention.sliding_window"),
        "sliding_window_pattern": _window_pattern(facts),
    }


def _window_pattern(facts: Facts) -> int:
    """Of how many layers the last sees everything. Stated as that number, or as what each layer does, or not at all."""
    stated = facts.file.metadata.get(f"{facts.architecture}.attention.sliding_window_pattern")
    if not isinstance(stated, np.ndarray):
        return facts.whole("attention.sliding_window_pattern", default=6)
    period = next((at for at, slides in enumerate(stated, 1) if not slides), len(stated) + 1)
    if any(bool(slides) != (at % period != 0) for at, slides in enumerate(stated, 1)):
        raise GgufError(f"its {facts.architecture}.attention.sliding_window_pattern is not periodic")
    return period


def _query_scalar(facts: Facts, layers_of_27b: int) -> float:
    """What queries are divided by the root of. No key states it: llama.cpp knows the 27B models by their layers."""
    if facts.whole("block_count") == layers_of_27b:
        return facts.whole("embedding_length") / facts.whole("attention.head_count")
    return _head_dim(facts)


_LLAMA = Architecture(
    "llama",
    _LAYER,
    _llama,
    frozenset({"linear", "yarn", "longrope"}),
    interleaved={"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"},
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", _LAYER, _qwen, frozenset({"linear", "yarn", "longrope"})),
    "qwen3": Architecture("qwen3", _LAYER | _NORMS_OF_HEADS, _qwen, frozenset({"linear", "yarn", "longrope"})),
    "gemma2": Architecture("gemma2", _LAYER | _NORMS_AROUND, _gemma2, norm_offset=1.0, half="bfloat16"),
    "gemma3": Architecture(
        "gemma3_text",
        _LAYER | _NORMS_AROUND | _NORMS_OF_HEADS,
        _gemma3,
        frozenset({"linear"}),
        norm_offset=1.0,
        half="bfloat16",
    ),
    "phi3": Architecture("phi3", _FUSED, _phi3, frozenset({"longrope"})),
}
