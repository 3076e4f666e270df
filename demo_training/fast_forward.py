"""The Llama forward pass with an exponential and gradients of its own, for training on the CPU.

MLX's CPU backend calls the C library's `exp` for every number: 20 ms for a million,
where a multiplication takes less than one. Softmax, SiLU and the cross entropy
then cost more than the matrix products. Here `exp` is a polynomial on the fraction
and the exponent's bits, right to 1e-4, and the gradients are written out so that
nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.llama import Model

LOG2_E = 1.4426950408889634
Arrays = list[mx.array] | tuple[mx.array, ...]


def fast_exp(x: mx.array) -> mx.array:
    """e to the x by splitting 2**t into its whole and its fractional part.

    What is below the least normal number is zero: masked places would otherwise become
    subnormal numbers, with which some processors compute twenty times as long.
    """
    shifted = mx.minimum(mx.maximum(x * LOG2_E, -127.0), 126.0) + 127.0
    whole = shifted.astype(mx.int32)
    part = shifted - whole
    power = 1.0 + part * (0.6931472 + part * (0.2402265 + part * (0.0555041 + part * (0.0096181 + part * 0.0013333))))
    return power * mx.view(whole * 8388608, mx.float32)


def _softmax(x: mx.array) -> mx.array:
    power = fast_exp(x - x.max(axis=-1, keepdims=True))
    return power * (1.0 / power.sum(axis=-1, keepdims=True))


@mx.custom_function
def softmax(x: mx.array) -> mx.array:
    """Softmax over the last axis."""
    return _softmax(x)


@softmax.vjp
def _softmax_vjp(x: mx.array, upstream: mx.array, out: mx.array) -> mx.array:
    product = upstream * out
    return product - out * product.sum(axis=-1, keepdims=True)


@mx.custom_function
def gated(gate: mx.array, up: mx.array) -> mx.array:
    """SiLU of the gate times the other branch."""
    return gate * up * (1.0 / (1.0 + fast_exp(-gate)))


@gated.vjp
def _gated_vjp(inputs: Arrays, upstream: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    gate, up = inputs
    sigmoid = 1.0 / (1.0 + fast_exp(-gate))
    silu = gate * sigmoid
    return upstream * up * (sigmoid + silu * (1.0 - sigmoid)), upstream * silu


@mx.custom_function
def _cross_entropy(x: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Per position the loss, and the probabilities, which the gradient needs again."""
    out = _softmax(x)
    chosen = mx.take_along_axis(out, targets[..., None], axis=-1).squeeze(-1)
    return -mx.log(mx.maximum(chosen, 1e-30)), out


@_cross_entropy.vjp
def _cross_entropy_vjp(inputs: Arrays, upstream: Arrays, outputs: Arrays) -> tuple[mx.array, mx.array]:
    _, targets = inputs
    out, index = outputs[1], targets[..., None]
    less = mx.take_along_axis(out, index, axis=-1) - 1.0
    return mx.put_along_axis(out, index, less, axis=-1) * upstream[0][..., None], mx.zeros_like(targets)


def cross_entropy(x: mx.array, targets: mx.array) -> mx.array:
    """The loss of each position against its target token."""
    outputs: Any = _cross_entropy(x, targets)
    loss: mx.array = outputs[0]
    return loss


@mx.custom_function
def _soft_cross_entropy(x: mx.array, wanted: mx.array) -> tuple[mx.array, mx.array]:
    """The cross entropy against a whole distribution, and the probabilities."""
    centred = x - x.max(axis=-1, keepdims=True)
    power = fast_exp(centred)
    total = power.sum(axis=-1, keepdims=True)
    return (mx.log(total) - (wanted * centred).sum(axis=-1, keepdims=True)).squeeze(-1), power * (1.0 / total)


@_soft_cross_entropy.vjp
def _soft_cross_entropy_vjp(inputs: Arrays, upstream: Arrays, outputs: Arrays) -> tuple[mx.array, mx.array]:
    _, wanted = inputs
    return (outputs[1] - wanted) * upstream[0][..., None], mx.zeros_like(wanted)


def soft_cross_entropy(x: mx.array, wanted: mx.array) -> mx.array:
    """The loss of each position against a whole distribution of the next token."""
    outputs: Any = _soft_cross_entropy(x, wanted)
    loss: mx.array = outputs[0]
    return loss


def _attention(layer: Any, x: mx.array, hidden_places: mx.array) -> mx.array:
    rows, length, _ = x.shape
    part = layer.self_attn
    group = part.n_heads // part.n_kv_heads
    q = part.rope(part.q_proj(x).reshape(rows, length, part.n_heads, -1).transpose(0, 2, 1, 3))
    k = part.rope(part.k_proj(x).reshape(rows, length, part.n_kv_heads, -1).transpose(0, 2, 1, 3))
    v = part.v_proj(x).reshape(rows, length, part.n_kv_heads, -1).transpose(0, 2, 1, 3)
    q = (q * part.scale).reshape(rows, part.n_kv_heads, group * length, -1)
    scores = (q @ k.swapaxes(-1, -2)).reshape(rows, part.n_heads, length, length) + hidden_places
    shares: mx.array = softmax(scores)  # type: ignore[assignment,unused-ignore]
    seen = shares.reshape(rows, part.n_kv_heads, group * length, length) @ v
    seen = seen.reshape(rows, part.n_heads, length, -1).transpose(0, 2, 1, 3).reshape(rows, length, -1)
    out: mx.array = part.o_proj(seen)
    return out


def logits(model: Model, tokens: mx.array, segments: mx.array) -> mx.array:
    """The model's logits where no position sees another document of its row."""
    order = mx.arange(tokens.shape[1])
    seen = (segments[:, None, :, None] == segments[:, None, None, :]) & (order[:, None] >= order[None])
    hidden_places = mx.where(seen, 0.0, -1e9)
    x = model.model.embed_tokens(tokens)
    for layer in model.model.layers:
        x = x + _attention(layer, layer.input_layernorm(x), hidden_places)
        inner, mlp = layer.post_attention_layernorm(x), layer.mlp
        x = x + mlp.down_proj(gated(mlp.gate_proj(inner), mlp.up_proj(inner)))
    out: mx.array = model.model.embed_tokens.as_linear(model.model.norm(x))
    return out
