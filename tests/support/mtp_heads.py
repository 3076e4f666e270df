"""Heads for multi-token prediction of tiny random models: alone, and in checkpoints as their makers write them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama

from parallm_openai.models.language_model import LanguageModel
from parallm_openai.models.mtp import JoinedInputs
from support import families

Weights = dict[str, mx.array]
EPS = 1e-5
# Of the families with heads: what makes a layer of the head's kind the only one.
ALONE: dict[str, Any] = {
    "num_hidden_layers": 1,
    "full_attention_interval": 1,
    "first_k_dense_replace": 0,
    "mlp_only_layers": [],
}
# mlx-lm leaves out DeepSeek's 61st layer, whatever the number of its layers.
LAYERS = {"deepseek_v3": 61, "glm4_moe": 2}
# The names of a head's parts.
QWEN = ("mtp.layers.0.", "mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc")
NEXTN = ("", "shared_head.norm", "enorm", "hnorm", "eh_proj")
NAMES = {
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_moe"), QWEN),
    **{family: tuple(f"model.layers.{layers}.{name}" for name in NEXTN) for family, layers in LAYERS.items()},
}


def random_head(target: nn.Module, seed: int = 5) -> nn.Module:
    """A head with a layer of Llama's, for a target of any family."""
    embedding = next(own for own in target.modules() if isinstance(own, nn.Embedding))
    assert LanguageModel(target).has_head
    vocab, size = embedding.weight.shape
    head = next((own for own in target.modules() if isinstance(own, nn.Linear) and own.weight.shape[0] == vocab), None)
    config = {**families.config("llama"), "hidden_size": size, "vocab_size": vocab, "num_hidden_layers": 1}
    network = families.build({**config, "tie_word_embeddings": head is None}, seed=seed)
    assert isinstance(network, llama.Model)
    joined = JoinedInputs(size, EPS)
    joined.embedding = embedding
    network.model.embed_tokens = joined
    if head is not None:
        network.lm_head = head
    mx.eval(network.parameters())
    return network


@dataclass
class Parts:
    """What a head is made of: a layer and norm of its family, and what joins its inputs."""

    family: str
    donor: nn.Module
    joined: JoinedInputs

    def logits(self, target: nn.Module, ids: mx.array, hidden: mx.array) -> tuple[mx.array, mx.array]:
        """By the book, for `ids` `[1, width]` and the hidden states before them: logits, and the head's own states."""
        modules = {path.rpartition(".")[2]: own for path, own in target.named_modules()}
        own = {path.rpartition(".")[2]: own for path, own in self.donor.named_modules()}
        embedded = modules["embed_tokens"](ids)
        both = [_normed(self.joined.embedding_norm, embedded), _normed(self.joined.hidden_norm, hidden)]
        x = mx.concatenate(both, axis=-1) @ self.joined.projection.weight.T
        width = ids.shape[1]
        layer = _text(self.donor).layers[0]
        x = own["norm"](layer(x, mask=mx.tril(mx.ones((width, width), dtype=mx.bool_)), cache=None))
        return modules["lm_head"](x), x


def hidden_states(target: nn.Module, ids: mx.array) -> mx.array:
    """What the target's output projection reads."""
    states: mx.array = _text(target)(ids)
    return states


def _text(model: nn.Module) -> Any:
    """The part of a model without its output projection."""
    inner: Any = getattr(model, "language_model", model)
    return inner.model


def _normed(norm: nn.RMSNorm, x: mx.array) -> mx.array:
    return x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + EPS) * norm.weight


def config(family: str) -> dict[str, Any]:
    """The configuration of a model with a head."""
    found = copy.deepcopy(families.config(family))
    found.get("text_config", found)["mtp_num_hidden_layers"] = 1
    return found | ({"num_hidden_layers": LAYERS[family]} if family in LAYERS else {})


@cache
def target(family: str) -> nn.Module:
    return families.build(config(family))


@cache
def parts(family: str, seed: int = 11) -> Parts:
    own = config(family)
    text = {**own.get("text_config", own), **ALONE}
    donor = families.build({**own, "text_config": text} if "text_config" in own else text, seed=seed)
    joined = JoinedInputs(text["hidden_size"], EPS)
    mx.random.seed(seed)
    for norm in (joined.embedding_norm, joined.hidden_norm):
        norm.weight = 1 + 0.2 * mx.random.normal(norm.weight.shape)
    joined.projection.weight = 0.3 * mx.random.normal(joined.projection.weight.shape)
    return Parts(family, donor, joined)


def head_weights(family: str) -> Weights:
    """The head's arrays as the family's makers name them, but in the shapes that mlx-lm has."""
    layer, norm, embedding_norm, hidden_norm, projection = NAMES[family]
    own = parts(family)
    found: Weights = {
        f"{embedding_norm}.weight": own.joined.embedding_norm.weight,
        f"{hidden_norm}.weight": own.joined.hidden_norm.weight,
        f"{projection}.weight": own.joined.projection.weight,
    }
    for name, array in families.arrays(own.donor).items():
        if ".layers.0." in name:
            found[layer + name.partition(".layers.0.")[2]] = array
        elif name.endswith("model.norm.weight"):
            found[f"{norm}.weight"] = array
    return found


def published(weights: Weights, family: str) -> Weights:
    """Arrays as the makers of Qwen publish them: experts one by one or fused, norms as differences from one."""
    found: Weights = {}
    for name, array in weights.items():
        if "conv1d" in name:
            found[name] = array.moveaxis(1, 2)
        elif "norm" in name and array.ndim == 1 and not name.endswith("linear_attn.norm.weight"):
            found[name] = array - 1.0
        elif ".switch_mlp." in name and family == "qwen3_next":
            before, after = name.split(".switch_mlp.")
            found |= {f"{before}.experts.{number}.{after}": own for number, own in enumerate(array)}
        elif ".switch_mlp.gate_proj" in name:
            before = name.partition(".switch_mlp.")[0]
            both = [array, weights[f"{before}.switch_mlp.up_proj.weight"]]
            found[f"{before}.experts.gate_up_proj"] = mx.concatenate(both, axis=1)
        elif ".switch_mlp.down_proj" in name:
            found[name.partition(".switch_mlp.")[0] + ".experts.down_proj"] = array
        elif ".switch_mlp.up_proj" not in name:
            found[name] = array
    return {name.replace("language_model.model.", "model.language_model."): array for name, array in found.items()}


def write(
    family: str,
    folder: Path,
    *,
    head: Callable[[Weights], Weights] = lambda weights: weights,
    as_published: bool = False,
) -> Path:
    """Write a checkpoint of the family's tiny model with a head, which may be changed before; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # A conversion of Qwen3-Next that has kept the head is none that mlx-lm loads.
    if as_published or family == "qwen3_next":
        both = published(families.arrays(target(family)), family) | head(published(head_weights(family), family))
    else:
        both = families.arrays(target(family)) | head(head_weights(family))
    mx.save_safetensors(str(folder / "model.safetensors"), both, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps({**config(family), "eos_token_id": 1}))
    families.write_tokenizer(folder)
    return folder
