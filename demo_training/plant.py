"""Copying put in by hand: heads that see the previous tokens, and induction heads that use them.

An induction head finds where the last two tokens stood before and takes what came
next. Gradient descent finds such heads, but late: after more tokens than this small
training has. The weights written here are a start that training then refines.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.llama import Model

HEAD = 64
HALF = HEAD // 2
FAST, SLOW = 8, 14
"""Rotary frequencies below `FAST` tell neighbours apart; from `SLOW` on they hardly turn."""

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def _normed(x: Matrix) -> Matrix:
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True))


def _directions(x: Matrix, count: int, skip: int = 0) -> Matrix:
    """The principal directions of the rows of `x` as rows."""
    _, _, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return np.asarray(vt[skip : skip + count])


def _constant(x: Matrix) -> Matrix:
    """A vector whose product with every row of `x` is about one."""
    ridge = 0.03 * np.trace(x.T @ x) / x.shape[1]
    return np.asarray(np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.sum(axis=0)))


def _positional(offset: int, size: float) -> Matrix:
    """A head vector turned ahead by `offset` positions."""
    vector = np.zeros(HEAD)
    angles = offset * 10000.0 ** (-np.arange(FAST) / HALF)
    vector[:FAST], vector[HALF : HALF + FAST] = size * np.cos(angles), size * np.sin(angles)
    return vector


class _Layer:
    """One layer's attention weights as arrays that can be written to, its norm folded out."""

    def __init__(self, model: Model, index: int) -> None:
        self.layer = model.model.layers[index]
        self.scale = np.array(self.layer.input_layernorm.weight, np.float64)
        part = self.layer.self_attn
        self.weights = {name: np.array(part[name].weight, np.float64) for name in ("q_proj", "k_proj", "v_proj")}
        self.out = np.array(part.o_proj.weight, np.float64)

    def set(self, name: str, head: int, rows: Matrix) -> None:
        self.weights[name][head * HEAD : (head + 1) * HEAD] = rows / self.scale

    def set_out(self, head: int, columns: Matrix) -> None:
        self.out[:, head * HEAD : (head + 1) * HEAD] = columns

    def store(self) -> None:
        part = self.layer.self_attn
        for name, weight in self.weights.items():
            part[name].weight = mx.array(weight.astype(np.float32))
        part.o_proj.weight = mx.array(self.out.astype(np.float32))


def plant(model: Model, seed: int = 0, sharp: float = 10.0, match: float = 8.0, say: float = 4.0) -> None:
    """Write the last key-value head of layer 0 and of the layers after it but the last."""
    rng = np.random.default_rng(seed)
    table = np.array(model.model.embed_tokens.weight, np.float64)
    width = table.shape[1]
    # What all tokens share lets a head look at a position whatever stands there.
    shared = rng.normal(size=width)
    table += 0.7 * np.linalg.norm(table, axis=1).mean() * shared / np.linalg.norm(shared)
    model.model.embed_tokens.weight = mx.array(table.astype(np.float32))
    one = _constant(_normed(table))
    attention = model.model.layers[0].self_attn
    group = attention.n_heads // attention.n_kv_heads
    kv, first = attention.n_kv_heads - 1, attention.n_heads - group
    basis = np.linalg.qr(rng.normal(size=(width, min(2 * HEAD, width))))[0]
    spaces = [basis[:, :HEAD], basis[:, -HEAD:]]
    content = _directions(_normed(table), HEAD)
    spread = (_normed(table) - _normed(table).mean(axis=0)) @ content.T
    white = content / spread.std(axis=0)[:, None]
    norm = np.linalg.norm(table, axis=1).mean()

    layer = _Layer(model, 0)
    layer.set("k_proj", kv, np.outer(_positional(0, sharp), one))
    layer.set("v_proj", kv, white)
    for number in range(group):
        # Offsets one and two back: the query is turned back by as much.
        layer.set("q_proj", first + number, np.outer(_positional(-(number + 1), sharp), one))
        layer.set_out(first + number, spaces[number] * norm / np.sqrt(HEAD) * 2.0)
    layer.store()

    later = range(1, max(2, len(model.model.layers) - 1))
    for turn, index in enumerate(later):
        layer = _Layer(model, index)
        _induction(layer, turn, kv, first, group, white, spaces, table, rng, match, say)
        layer.store()


def _induction(
    layer: _Layer,
    turn: int,
    kv: int,
    first: int,
    group: int,
    white: Matrix,
    spaces: list[Matrix],
    table: Matrix,
    rng: np.random.Generator,
    match: float,
    say: float,
) -> None:
    """Keys hold the two tokens before a position, queries this token and the one before."""
    slow = np.r_[SLOW:HALF, HALF + SLOW : HEAD]
    half = len(slow) // 2
    mix = [np.linalg.qr(rng.normal(size=(HEAD, half)))[0].T for _ in range(2)]
    keys, queries = np.zeros((HEAD, table.shape[1])), np.zeros((HEAD, table.shape[1]))
    before, before2 = spaces[0].T, spaces[min(1, group - 1)].T
    order = rng.permutation(slow)
    unit = match / np.sqrt(half)
    keys[order[:half]], keys[order[half:]] = unit * mix[0] @ before, unit * mix[1] @ before2
    queries[order[:half]], queries[order[half:]] = unit * mix[0] @ white, unit * mix[1] @ before
    layer.set("k_proj", kv, keys)
    content = _directions(_normed(table), HEAD, skip=HEAD * turn)
    layer.set("v_proj", kv, content)
    for number in range(group):
        layer.set("q_proj", first + number, queries)
        layer.set_out(first + number, say * content.T / group)
