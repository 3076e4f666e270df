"""Make a model of a GGUF file. Importing this imports mlx."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from parallm_openai.models.chat_template import Template
from parallm_openai.models.gguf import quantisation
from parallm_openai.models.gguf.architectures import Architecture, architecture_of
from parallm_openai.models.gguf.finding import GgufError
from parallm_openai.models.gguf.quantisation import Kind
from parallm_openai.models.gguf.reading import GgufFile, Tensor, read
from parallm_openai.models.gguf.tokenizer import read_tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A file whose tensors are known to fit a model: all that can be refused has been, and no weight is read yet."""

    file: GgufFile
    architecture: Architecture
    config: dict[str, Any]
    network: nn.Module
    tensors: dict[str, Tensor]

    def tokenizer(self, template: Template | None = None) -> TokenizerWrapper:
        """The tokenizer that the metadata describe, with their chat template or another one.

        Raises GgufError if they describe none that is known.
        """
        return read_tokenizer(self.file, self.config["vocab_size"], template)

    def model(self, *, dequantised: bool) -> nn.Module:
        """The model with its weights, of which one tensor after the other is read.

        With `dequantised`, all weights are float32. Otherwise matrices of the types that MLX's quantised form can hold
        stay in it, and all else is as wide as activations are.
        """
        dtype = mx.float32 if dequantised else self._dtype()
        quantised = {} if dequantised else self._quantised_modules()
        if quantised:
            nn.quantize(self.network, class_predicate=lambda path, _: quantised.get(path, False))
        weights: list[tuple[str, mx.array]] = []
        for name, tensor in self.tensors.items():
            module, _, leaf = name.rpartition(".")
            if module in quantised and leaf == "weight":
                found = self._packed(name, tensor, dtype)
            else:
                found = {name: self._numbers(name, tensor, dtype)}
            # One tensor at a time: the file's own form of it and its numbers are never held for several.
            mx.eval(found)
            weights.extend(found.items())
        weights.extend((name, mx.zeros(shape, dtype)) for name, shape in self._absent_biases().items())
        self.network.load_weights(weights, strict=True)
        return self.network

    def _dtype(self) -> mx.Dtype:
        """The type of activations: the file's own if it is not quantised, else the family's 16-bit type."""
        kinds = {tensor.kind for tensor in self.tensors.values() if len(tensor.shape) > 1}
        if kinds == {Kind.F32}:
            return mx.float32
        if Kind.BF16 in kinds or self.architecture.half == "bfloat16":
            return mx.bfloat16
        return mx.float16

    def _quantised_modules(self) -> dict[str, dict[str, Any]]:
        """How `nn.quantize` is to convert each module whose weights stay quantised."""
        modules = dict(self.network.named_modules())
        return {
            module: {"group_size": quantisation.GROUP, "bits": bits, "mode": "affine"}
            for name, tensor in self.tensors.items()
            if hasattr(modules[module := name.rpartition(".")[0]], "to_quantized")
            and (bits := quantisation.bits(tensor.kind)) is not None
        }

    def _packed(self, name: str, tensor: Tensor, dtype: mx.Dtype) -> dict[str, mx.array]:
        packed = quantisation.packed(self._blocks(name, tensor), tensor.kind)
        module = name.rpartition(".")[0]
        return {
            name: mx.array(packed.weight),
            f"{module}.scales": mx.array(packed.scales).astype(dtype),
            f"{module}.biases": mx.array(packed.biases).astype(dtype),
        }

    def _numbers(self, name: str, tensor: Tensor, dtype: mx.Dtype) -> mx.array:
        numbers = quantisation.dequantised(self._blocks(name, tensor), tensor.kind).reshape(tensor.shape)
        if len(tensor.shape) == 1 and _is_norm(name):
            numbers -= np.float32(self.architecture.norm_offset)
        return mx.array(numbers).astype(dtype)

    def _blocks(self, name: str, tensor: Tensor) -> np.ndarray:
        """The tensor's blocks, with a row for each number of a vector, in mlx-lm's order of rows."""
        blocks = self.file.blocks(tensor)
        if len(tensor.shape) == 1:
            blocks = blocks.reshape(tensor.shape[0], -1)
        for module, key in self.architecture.interleaved.items():
            if module in name:
                return _halves_from_pairs(blocks, self.config[key])
        return blocks

    def _absent_biases(self) -> dict[str, tuple[int, ...]]:
        shapes = _shapes(self.network)
        return {name: shapes[name] for name in shapes.keys() - self.tensors.keys() if name.endswith(".bias")}


def open_checkpoint(path: Path) -> Checkpoint:
    """The file as a checkpoint. Raises GgufError if it cannot become a model, before any weight is read."""
    file = read(path)
    architecture = architecture_of(file)
    config = architecture.config(file)
    tensors = {
        parameter: tensor
        for name, tensor in file.tensors.items()
        if (parameter := architecture.parameter(name)) is not None
    }
    for kind in {tensor.kind for tensor in tensors.values()}:
        quantisation.check_known(kind)
    network = _network(config, tensors)
    _check_shapes(network, tensors)
    return Checkpoint(file, architecture, config, network, tensors)


def _network(config: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """mlx-lm's model of this config. Its arrays are lazy, so whatever sizes are claimed take no memory."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    network: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    network.eval()
    if hasattr(network, "sanitize"):
        # Some models drop their own head here if the weights have none; nothing in them is computed.
        network.sanitize({name: mx.zeros(()) for name in tensors})
    return network


def _check_shapes(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    shapes = _shapes(network)
    unknown = sorted(tensors.keys() - shapes.keys())
    missing = sorted(name for name in shapes.keys() - tensors.keys() if not name.endswith(".bias"))
    if unknown or missing:
        problem = f"it lacks {', '.join(missing[:3])}" if missing else f"it has {', '.join(unknown[:3])} too much"
        raise GgufError(f"its tensors are not those of its architecture: {problem}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise GgufError(
                f"its tensor {tensor.name} has the shape {list(tensor.shape)}; its metadata say {list(shapes[name])}"
            )
        if len(tensor.shape) == 1 and tensor.kind not in quantisation.PLAIN:
            raise GgufError(f"its tensor {tensor.name} is a vector in {tensor.kind.name}, which is not supported")


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in dict(tree_flatten(network.parameters())).items()}


def _is_norm(parameter: str) -> bool:
    return parameter.endswith("norm.weight")


def _halves_from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads whose rotated pairs lie side by side, in the order first halves, second halves."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
