"""GGUF files: the weights of a model, quantised or not, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from mlx.utils import tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import dequantize_model
from support import families, gguf_files

from parallm_openai.models.gguf import quantisation
from parallm_openai.models.gguf.checkpoint import open_checkpoint
from parallm_openai.models.loading import load
from parallm_openai.models.weights import on_plain_cpu

PROMPT = [[5, 9, 70, 33, 12, 99, 3, 41, 8, 17, 64, 2]]
IN_MLX_FORM = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K)
OTHERS = (Kind.F16, Kind.BF16, Kind.Q2_K, Kind.Q3_K, Kind.Q6_K, Kind.IQ4_XS)


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array(PROMPT)).astype(mx.float32))


def relative_difference(one: nn.Module, other: nn.Module) -> float:
    return float(np.linalg.norm(logits(one) - logits(other)) / np.linalg.norm(logits(other)))


def largest_difference_of_weights(one: nn.Module, other: nn.Module) -> float:
    ours, theirs = families.arrays(one), families.arrays(other)
    assert ours.keys() <= theirs.keys()
    assert len(ours) > 10
    return max(float(mx.abs(array - theirs[name]).max()) for name, array in ours.items())


# What comes out


@pytest.mark.parametrize("family", gguf_files.FAMILIES)
def test_a_file_becomes_the_model_that_it_was_made_of(family: str, tmp_path: Path) -> None:
    original = gguf_files.write(family, tmp_path / "tiny.gguf")
    loaded = load(tmp_path / "tiny.gguf")
    # What llama.cpp adds to Gemma's norms cannot be taken off again to the last bit.
    offset = gguf_files.FAMILIES[family].norm_offset
    assert largest_difference_of_weights(loaded.model, original) <= offset * 1e-6
    # Over many random layers rounding grows, on some CPUs by some hundred times; a wrong weight would tell far more.
    tolerance = 1e-5 if len(loaded.model.layers) < 10 else 1e-2
    assert relative_difference(loaded.model, original) < tolerance
    assert loaded.dtype == mx.float32
    assert loaded.vocab_size == families.VOCAB


def test_a_bias_that_the_file_lacks_is_zero(tmp_path: Path) -> None:
    absent = {
        "blk.0.attn_output.bias": "model.layers.0.self_attn.o_proj.bias",
        "blk.1.ffn_up.bias": "model.layers.1.mlp.up_proj.bias",
    }

    def leave_out(writer: gguf.GGUFWriter) -> None:
        for tensor in absent:
            del writer.tensors[0][tensor]

    original = gguf_files.write("llama_biased", tmp_path / "tiny.gguf", change=leave_out)
    zeros = [(name, mx.zeros_like(families.arrays(original)[name])) for name in absent.values()]
    original.load_weights(zeros, strict=False)
    assert largest_difference_of_weights(load(tmp_path / "tiny.gguf").model, original) == 0


def test_an_adapter_is_applied_to_a_file_as_to_a_folder(tmp_path: Path) -> None:
    original = gguf_files.write("llama", tmp_path / "tiny.gguf")
    folder = families.write("llama", tmp_path / "folder", dtype=mx.float32, built=original)
    settings = {"num_layers": 2, "lora_parameters": {"rank": 4, "scale": 8.0, "dropout": 0.0}}
    linear_to_lora_layers(original, settings["num_layers"], settings["lora_parameters"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora = {name: array for name, array in families.arrays(original).items() if "lora_" in name}
    mx.save_safetensors(
        str(adapter / "adapters.safetensors"), {name: mx.random.normal(array.shape) for name, array in lora.items()}
    )
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    of_file, of_folder = (load(path, adapter_path=adapter).model for path in (tmp_path / "tiny.gguf", folder))
    assert relative_difference(of_file, of_folder) < 1e-5
    assert relative_difference(of_file, load(folder).model) > 0.1


@pytest.mark.skipif(not on_plain_cpu(), reason="elsewhere quantised weights stay so")
@pytest.mark.parametrize("kind", [*IN_MLX_FORM, *OTHERS], ids=lambda kind: kind.name)
def test_quantised_weights_are_the_numbers_that_they_stand_for(kind: Kind, tmp_path: Path) -> None:
    original = gguf_files.write("llama", tmp_path / "tiny.gguf", kind)
    loaded = load(tmp_path / "tiny.gguf")
    assert largest_difference_of_weights(loaded.model, original) == 0
    assert loaded.dtype == mx.float32


@pytest.mark.parametrize("kind", IN_MLX_FORM, ids=lambda kind: kind.name)
def test_mlx_holds_the_same_numbers_in_its_quantised_form(kind: Kind) -> None:
    blocks = gguf_files.quantised(np.random.default_rng(0).normal(0, 0.1, (96, 512)).astype(np.float32), kind)
    packed = quantisation.packed(blocks, kind)
    numbers = mx.dequantize(
        mx.array(packed.weight),
        mx.array(packed.scales),
        mx.array(packed.biases),
        group_size=quantisation.GROUP,
        bits=quantisation.bits(kind),
    )
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(np.array(numbers), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_the_quantised_form_is_that_of_mlxs_own_reader(kind: Kind, tmp_path: Path) -> None:
    gguf_files.write("qwen3", tmp_path / "tiny.gguf", kind)
    theirs = mx.load(str(tmp_path / "tiny.gguf"))
    assert isinstance(theirs, dict)
    ours = families.arrays(open_checkpoint(tmp_path / "tiny.gguf").model(dequantised=False))
    for part in ("weight", "scales", "biases"):
        assert mx.array_equal(ours[f"model.layers.1.mlp.down_proj.{part}"], theirs[f"blk.1.ffn_down.{part}"])


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_K, Kind.Q6_K, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_off_the_plain_cpu_weights_stay_as_small_as_mlx_can_hold_them(family: str, kind: Kind, tmp_path: Path) -> None:
    original = gguf_files.write(family, tmp_path / "tiny.gguf", kind)
    model = open_checkpoint(tmp_path / "tiny.gguf").model(dequantised=False)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    packed = [module for module in model.modules() if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    assert (layers == []) == (kind in IN_MLX_FORM)
    assert (packed == []) == (kind not in IN_MLX_FORM)
    floats = {array.dtype for array in families.arrays(model).values() if array.dtype != mx.uint32}
    expected = mx.bfloat16 if kind == Kind.BF16 or family.startswith("gemma") else mx.float16
    assert floats == {expected}
    widened = dequantize_model(model)
    widened.update(tree_map(lambda array: array.astype(mx.float32), widened.parameters()))
    # Scales are rounded to 8 or 11 binary digits.
    assert largest_difference_of_weights(widened, original) < (2**-6 if expected == mx.bfloat16 else 2**-9)


def test_float32_stays_float32_everywhere(tmp_path: Path) -> None:
    original = gguf_files.write("qwen3", tmp_path / "tiny.gguf")
    model = open_checkpoint(tmp_path / "tiny.gguf").model(dequantised=False)
    assert relative_difference(model, original) < 1e-5
    assert {array.dtype for array in families.arrays(model).values()} == {mx.float32}
