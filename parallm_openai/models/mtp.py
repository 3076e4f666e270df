"""Heads for multi-token prediction (MTP): one layer that guesses the token after next from the model's hidden state.

For each token the head reads the model's hidden state before its output projection, and the embedding of the token that
follows (DeepSeek-V3, arXiv 2412.19437, section 2.2). It has the model's embedding and output projection, and its own
hidden state takes the place of the model's for the tokens after that. Checkpoints carry the head beside the model, and
mlx-lm leaves it out. Its layer is one of the model's family: a network of that family with this one layer is built, and
in the place of its embedding stands the module that joins the two inputs.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from parallm_openai.models import weights
from parallm_openai.models.load_error import sentence

if TYPE_CHECKING:
    from parallm_openai.models.loading import LoadedModel

log = logging.getLogger(__name__)

Weights = dict[str, mx.array]

# A norm whose weights are stored as differences from one has about this mean at most.
ZERO_CENTRED = 0.5

# What MLX quantises to.
GROUP_SIZES = (32, 64, 128)
BITS = (2, 3, 4, 5, 6, 8)

# The hidden states that go with the tokens of the forward that this thread is in, `[rows, width, hidden]`.
_hidden: ContextVar[mx.array | None] = ContextVar("hidden", default=None)


@dataclass(frozen=True)
class Layout:
    """How a family's checkpoints name the parts of a head, and what of a config makes its layer the network's only one.

    `place` comes before all names, `{layers}` in it is the number of the model's own layers. `zero_centred` says that
    the makers store a norm's weights as differences from one. `counted_by` is the config's number of heads.
    """

    place: str
    layer: str
    norm: str
    embedding_norm: str
    hidden_norm: str
    projection: str
    counted_by: str
    config: Mapping[str, Any] = field(default_factory=dict)
    zero_centred: bool = False


QWEN = Layout(
    place="mtp.",
    layer="layers.0.",
    norm="norm.",
    embedding_norm="pre_fc_norm_embedding.",
    hidden_norm="pre_fc_norm_hidden.",
    projection="fc.",
    counted_by="mtp_num_hidden_layers",
    config={"num_hidden_layers": 1, "full_attention_interval": 1, "layer_types": None, "mlp_only_layers": []},
    zero_centred=True,
)
NEXTN = Layout(
    place="model.layers.{layers}.",
    layer="",
    norm="shared_head.norm.",
    embedding_norm="enorm.",
    hidden_norm="hnorm.",
    projection="eh_proj.",
    counted_by="num_nextn_predict_layers",
    config={"num_hidden_layers": 1, "first_k_dense_replace": 0},
)
LAYOUTS = {
    "qwen3_next": QWEN,
    "qwen3_5": QWEN,
    "qwen3_5_moe": QWEN,
    "glm4_moe": NEXTN,
    "deepseek_v3": NEXTN,
}


class JoinedInputs(nn.Module):
    """What stands in the place of a head's embedding: it joins the embedding of a token and a hidden state.

    Without hidden states it takes zeros, as the checks do that every network has to pass.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding_norm = nn.RMSNorm(size, eps=eps)
        self.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.projection = nn.Linear(2 * size, size, bias=False)
        # The model's own, once all else is loaded.
        self.embedding: nn.Module = nn.Identity()

    def __call__(self, ids: mx.array) -> mx.array:
        embedded = self.embedding(ids)
        given = _hidden.get()
        hidden = mx.zeros_like(embedded) if given is None else given.astype(embedded.dtype)
        both = [self.embedding_norm(embedded), self.hidden_norm(hidden)]
        joined: mx.array = self.projection(mx.concatenate(both, axis=-1))
        return joined

    def as_linear(self, x: mx.array) -> mx.array:
        projected: mx.array = self.embedding.as_linear(x)
        return projected


@contextmanager
def fed(hidden: mx.array) -> Iterator[None]:
    """For the length of a block, heads read these hidden states `[rows, width, hidden]`."""
    token = _hidden.set(hidden)
    try:
        yield
    finally:
        _hidden.reset(token)


def load_head(model: LoadedModel) -> nn.Module | None:
    """The head that the model's checkpoint carries, as a network; None, with a word in the log, if it carries none.

    The two share the model's output projection, which must compute single positions (`LanguageModel.has_head`).
    """
    layout = LAYOUTS.get(str(model.config.get("model_type")))
    if layout is None or not model.path.is_dir():
        return None
    try:
        return _read_head(model, layout)
    except Exception as error:
        # The model itself is sound. Libraries stumble over broken arrays in many ways.
        log.warning("the head for multi-token prediction of %s cannot be read (%s)", model.name, sentence(error))
        return None


def _read_head(model: LoadedModel, layout: Layout) -> nn.Module | None:
    text = model.config.get("text_config") or model.config
    found = _stored(model.path, layout.place.format(layers=text.get("num_hidden_layers")), layout)
    if not found:
        if text.get(layout.counted_by):
            log.info(
                "%s was made with a head for multi-token prediction, which would draft for it; this checkpoint has "
                "lost it, as conversions by mlx-lm do",
                model.name,
            )
        return None
    network = _network(model, layout)
    _fill(network, found, layout)
    if weights.on_plain_cpu():
        network = weights.for_cpu(network)
    _share(network, model.model)
    weights.evaluate(network)
    return network


def _stored(folder: Path, place: str, layout: Layout) -> Weights:
    """The head's arrays by their names after `place`, not read yet; a norm's weights as factors."""
    found: Weights = {}
    raw = False
    for file in sorted(folder.glob("model*.safetensors")):
        arrays = mx.load(str(file))
        assert isinstance(arrays, dict)
        for name, array in arrays.items():
            before, here, after = name.partition(place)
            # Conversions that keep the head put the path of the model's text part before it.
            if here and (not before or before.endswith(".")):
                found[after] = array
            raw |= name.endswith("conv1d.weight") and array.ndim == 3 and array.shape[-1] != 1
    if layout.zero_centred:
        for name, array in found.items():
            # A conversion may have made factors of the model's norms alone.
            if array.ndim == 1 and "norm" in name and (raw or _mean(array) < ZERO_CENTRED):
                found[name] = array + 1.0
    return found


def _mean(array: mx.array) -> float:
    mean: float = array.astype(mx.float32).mean().item()  # type: ignore[assignment]
    return mean


def _network(model: LoadedModel, layout: Layout) -> nn.Module:
    """A network of the model's family with one layer; its embedding and output projection are still missing."""
    module: Any = sys.modules[type(model.model).__module__]
    config = copy.deepcopy(model.config)
    text = config.get("text_config") or config
    text.update({name: value for name, value in layout.config.items() if name in text or value is not None})
    network: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    size, eps = int(text["hidden_size"]), float(text.get("rms_norm_eps", 1e-6))
    embedding = _embedding(network)
    _put(network, embedding, JoinedInputs(size, eps))
    for path, own in list(network.named_modules()):
        if path.endswith("lm_head") and isinstance(own, nn.Linear):
            _put(network, path, nn.Identity())
        if hasattr(own, "ssm_idx"):
            # The number of its first recurrent layer, for which it makes a mask.
            own.ssm_idx = None
    return network


def _fill(network: nn.Module, found: Weights, layout: Layout) -> None:
    """Give the network the head's arrays. Raises ValueError if some are missing."""
    parts = {
        layout.embedding_norm: "embedding_norm.",
        layout.hidden_norm: "hidden_norm.",
        layout.projection: "projection.",
    }
    joined = _joined_inputs(network)
    own: Weights = {}
    layer: Weights = {}
    for name, array in found.items():
        part = next((part for part in parts if name.startswith(part)), None)
        if part is not None:
            own[f"{joined}.{parts[part]}{name.removeprefix(part)}"] = array
        elif name.startswith(layout.norm):
            layer["model.norm." + name.removeprefix(layout.norm)] = array
        elif name.startswith(layout.layer):
            layer["model.layers.0." + name.removeprefix(layout.layer)] = array
    norms = {name: array for name, array in layer.items() if layout.zero_centred and name.endswith("norm.weight")}
    # Experts are joined there, for instance. Norms are right already, and it might take them for differences.
    own |= network.sanitize({name: array for name, array in layer.items() if name not in norms})
    expected = _names(network)
    own |= {full: array for name, array in norms.items() for full in expected if f".{full}".endswith(f".{name}")}
    _quantise(network, own)
    expected = _names(network)
    if missing := sorted(expected - own.keys()):
        raise ValueError(f"{missing[0]} is missing")
    for name in sorted(expected):
        if not mx.issubdtype(own[name].dtype, mx.floating) and name.removesuffix("weight") + "scales" not in own:
            raise ValueError(f"{name} has whole numbers")
    network.load_weights([(name, array) for name, array in own.items() if name in expected])
    network.eval()


def _names(network: nn.Module) -> set[str]:
    return set(dict(tree_flatten(network.parameters())))


def _quantise(network: nn.Module, own: Weights) -> None:
    """Make the modules quantised whose arrays are. Raises ValueError if the arrays do not go together."""

    def shape_of(path: str, module: nn.Module) -> bool | dict[str, int]:
        scales, weight = own.get(f"{path}.scales"), own.get(f"{path}.weight")
        if scales is None or weight is None or not hasattr(module, "to_quantized"):
            return False
        size = module.weight.shape[-1]
        shapes = [
            {"group_size": group, "bits": bits}
            for group in GROUP_SIZES
            for bits in BITS
            if scales.shape == (*weight.shape[:-1], size // group) and weight.shape[-1] * 32 == size * bits
        ]
        if not shapes:
            raise ValueError(f"{path} has scales that do not fit")
        return shapes[0]

    nn.quantize(network, class_predicate=shape_of)


def _share(network: nn.Module, target: nn.Module) -> None:
    """Give the network the target's embedding and output projection."""
    modules = dict(target.named_modules())
    joined = dict(network.named_modules())[_joined_inputs(network)]
    assert isinstance(joined, JoinedInputs)
    joined.embedding = modules[_joined_inputs(network)]
    for path, _ in list(network.named_modules()):
        if path.endswith("lm_head"):
            _put(network, path, modules[path])


def _embedding(network: nn.Module) -> str:
    return next(path for path, own in network.named_modules() if path.endswith("embed_tokens") and own)


def _joined_inputs(network: nn.Module) -> str:
    return next(path for path, own in network.named_modules() if isinstance(own, JoinedInputs))


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    owner, _, name = path.rpartition(".")
    modules: dict[str, Any] = dict(network.named_modules())
    setattr(modules[owner], name, module)
