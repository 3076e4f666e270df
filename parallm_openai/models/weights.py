"""A model's arrays: their types, how they lie in memory, and where. Importing this imports mlx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model, load_adapters, load_model

from parallm_openai.cpu import huge_pages
from parallm_openai.models.embedding import model_classes, model_config


def on_plain_cpu() -> bool:
    """Whether MLX computes on a CPU without native half precision (Linux without CUDA)."""
    if mx.metal.is_available() or mx.cuda.is_available():
        return False
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def read(folder: Path, adapter: Path | None, *, trust_remote_code: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The model in the folder, with its adapter, and its config. Nothing is evaluated yet."""
    model, config = load_model(folder, lazy=True, trust_remote_code=trust_remote_code)
    return adapted(model, adapter), config


def read_embedding_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The same for the decoder of an embedding model."""
    loaded = load_model(folder, lazy=True, model_config=model_config(folder), get_model_classes=model_classes)
    if not hasattr(getattr(loaded[0], "model", None), "embed_tokens"):
        raise ValueError("the states of its decoder are not known")
    return loaded[0], loaded[1]


def adapted(model: nn.Module, adapter: Path | None) -> nn.Module:
    """The model with the LoRA adapter in a folder, or as it is."""
    if adapter is not None:
        model = load_adapters(model, str(adapter))
        model.eval()
    return model


def for_cpu(model: nn.Module, split: Callable[[nn.Module], None] = lambda model: None) -> nn.Module:
    """Dequantise the model, fuse its adapters and widen it to float32, the one type in which a CPU's products are fast.

    `split` may take away other processes' shares of it, before anything is computed. Raises ValueError if the model
    cannot be dequantised.
    """
    if any(module.get("global_scale") is not None for module in model.modules()):
        raise ValueError("nvfp4 experts with scales of their own cannot be dequantised for this CPU")
    model = dequantize_model(model)

    def widened(weight: mx.array) -> mx.array:
        return weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) else weight

    model.update(tree_map(widened, model.parameters()))
    # Only now, or what an adapter adds would be rounded to half precision.
    fuse_adapters(model)
    split(model)
    _transpose_weights(model)
    return model


def fuse_adapters(model: nn.Module) -> None:
    fused = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    if fused:
        model.update_modules(tree_unflatten(fused))


def _transpose_weights(model: nn.Module) -> None:
    """Store what linear layers multiply by in the order `[in, out]`; its shape stays `[out, in]`.

    OpenBLAS copies a weight into blocks for every product, which takes most of the time if there are few rows.
    From a weight stored this way it copies whole cache lines.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.AllToShardedLinear, nn.ShardedToAllLinear)):
            module.weight = mx.contiguous(module.weight.T).T
            # One at a time: the whole model is never held twice.
            mx.eval(module.weight)


def evaluate(model: nn.Module) -> None:
    """Evaluate every array of every module, private constants such as RoPE frequencies included.

    An MLX graph can only be evaluated on the thread that built it, and the engine has a thread of its
    own: nothing that it reads may be left lazy.
    """
    mx.eval(_all_arrays(model))


def _all_arrays(model: nn.Module) -> list[mx.array]:
    return [value for module in model.modules() for value in module.values() if isinstance(value, mx.array)]


def compute_dtype(model: nn.Module) -> mx.Dtype:
    """The type of the model's activations: the commonest one among its float weights."""
    arrays = dict(tree_flatten(model.parameters())).values()
    floats = [array.dtype for array in arrays if mx.issubdtype(array.dtype, mx.floating)]
    return max(dict.fromkeys(floats), key=floats.count) if floats else mx.float32


def logits_width(model: nn.Module) -> int:
    """The width of its logits, from one forward: configs, tokenizers and padded heads disagree."""
    logits = model(mx.array([[0]]), cache=make_prompt_cache(model))
    mx.eval(logits)
    return int(logits.shape[-1])


def weight_bytes(model: nn.Module) -> int:
    return sum(weight.nbytes for weight in dict(tree_flatten(model.parameters())).values())


def use_huge_pages(model: nn.Module) -> None:
    """Ask Linux to keep the model's arrays in huge pages. They must be evaluated."""
    huge_pages.collapse(filter(None, map(_addresses, _all_arrays(model))))


def _addresses(array: mx.array) -> range | None:
    """Where the array's numbers lie, if they lie side by side and numpy can look at them."""
    if array.dtype == mx.bfloat16:
        return None
    view = np.array(array, copy=False)
    return range(view.ctypes.data, view.ctypes.data + view.nbytes) if view.flags.forc else None
