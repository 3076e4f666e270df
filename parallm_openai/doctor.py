"""What this machine and a model can do, for `parallm-openai doctor` and the log at start."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time

import mlx.core as mx
from mlx_lm.utils import get_total_parameters

from parallm_openai import __version__
from parallm_openai.cpu import prepare
from parallm_openai.engine.capabilities import UnsupportedModelError, probe
from parallm_openai.models.loading import LoadedModel
from parallm_openai.models.weights import on_plain_cpu

Facts = list[tuple[str, str]]


def describe_machine() -> Facts:
    """Name and value of what matters about the machine, a measured matrix product among them."""
    status = prepare()
    return [
        ("parallm-openai", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("mlx, mlx-lm", f"{_version('mlx')}, {_version('mlx-lm')}"),
        ("device", device()),
        ("processors, memory", f"{os.cpu_count()}, {_memory()}"),
        ("BLAS of the CPU", f"{status.blas.name} ({status.blas.detail})"),
        ("fused functions of the CPU", status.compiler),
        ("fp32 product 1024x1024", f"{_gflops():.0f} GFLOP/s"),
        ("types on this device", "float32, dequantised" if on_plain_cpu() else "the checkpoint's own"),
    ]


def describe_model(model: LoadedModel) -> Facts:
    """Name and value of what matters about a model, its batching and speculation among them."""
    try:
        abilities = probe(model.model, model.vocab_size)
        batching = f"{abilities.batching} ({abilities.reason})"
        speculation = "yes" if abilities.ragged is not None else "no"
    except UnsupportedModelError as error:
        batching, speculation = f"cannot be served: {error}", "no"
    return [
        ("model", f"{model.name} ({model.path})"),
        ("family", str(model.config.get("model_type"))),
        ("parameters", f"{_parameters(model) / 1e6:.1f}M in {_name(model.dtype)}"),
        ("context, vocabulary", f"{model.context_length}, {model.vocab_size}"),
        ("batching", batching),
        ("speculation", speculation),
    ]


def one_line(model: LoadedModel) -> str:
    """The essentials for the log at a server's start."""
    blas = prepare().blas
    line = f"{model.name}: {_parameters(model) / 1e6:.1f}M parameters in {_name(model.dtype)} on {device()}"
    if not on_plain_cpu():
        return line
    hint = "" if blas.optimised else f"; SLOW: {blas.detail}"
    return f"{line}, BLAS: {blas.name}{hint}"


def device() -> str:
    found = mx.default_device()
    if found.type == mx.DeviceType.cpu:
        return "CPU"
    info = mx.device_info(found)
    return f"GPU ({info.get('device_name', 'Metal' if sys.platform == 'darwin' else 'CUDA')})"


def _gflops(size: int = 1024, rounds: int = 5) -> float:
    square = mx.random.normal((size, size))
    mx.eval(square @ square)
    began = time.perf_counter()
    for _ in range(rounds):
        mx.eval(square @ square)
    return 2 * size**3 * rounds / (time.perf_counter() - began) / 1e9


def _memory() -> str:
    text = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    if mx.default_device().type == mx.DeviceType.cpu:
        return text
    size = mx.device_info(mx.default_device()).get("memory_size")
    return f"{text}; {int(size) / 2**30:.0f} GiB on the GPU" if size else text


def _parameters(model: LoadedModel) -> int:
    """How many weights the checkpoint stands for, packed ones counted one by one."""
    return int(get_total_parameters(model.model))


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
