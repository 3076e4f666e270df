"""What MLX's kernels are fast at."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

# MLX's `scaled_dot_product_attention.cpp` for Metal: the kernel for few queries takes up to 8 tokens
# a row, and up to 32 of tokens times query heads per key-value head.
VECTOR_TOKENS, VECTOR_QUERIES = 8, 32

# A forward of one token takes as long as 15 (AMD) to 33 (Intel) more tokens in a wider one do, on two
# cores with OpenBLAS. Not measured on GPUs; NVIDIA's do some ten times as much arithmetic per byte read.
FORWARD_TOKENS, CUDA_FORWARD_TOKENS = 24, 256


# A forward over more prompt tokens than this computes hardly more of them a second. GPUs: mlx_lm's own default.
CPU_PREFILL_TOKENS, GPU_PREFILL_TOKENS = 512, 2048


def prefill_tokens() -> int:
    """How many prompt tokens one forward reads efficiently."""
    return GPU_PREFILL_TOKENS if on_gpu() else CPU_PREFILL_TOKENS


def on_gpu() -> bool:
    """Whether the host and the device compute side by side; on a CPU they take the cores from each other."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def forward_tokens() -> int:
    """How many prompt tokens more cost as much as one more forward, which reads all weights again."""
    return CUDA_FORWARD_TOKENS if mx.cuda.is_available() else FORWARD_TOKENS


def fast_width(config: dict[str, Any]) -> int | None:
    """The most tokens a row that a forward may read at the cost of few; None if the kernels have no such bound.

    `config` is a model's config.json.
    """
    return vector_width(config.get("text_config") or config) if mx.metal.is_available() else None


def vector_width(config: dict[str, Any]) -> int | None:
    """`fast_width` of Metal's attention kernel for few queries."""
    heads = config.get("num_attention_heads")
    shared = config.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(shared, int) or shared < 1:
        return None
    width = min(VECTOR_TOKENS, VECTOR_QUERIES // -(-heads // shared))
    # Where not even two tokens fit, every draft is verified by another kernel, and its cost must be measured.
    return width if width > 1 else None
