"""The processes that share one model, and how it is split over them. Importing this imports mlx."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, make_prompt_cache

from parallm_openai import __version__
from parallm_openai.distributed.channel import OnLoss, Receiver, Sender, open_receiver, open_sender, patience
from parallm_openai.models.load_error import ModelLoadError, sentence
from parallm_openai.models.mixers import leaves

# The attributes of mlx-lm's attention layers that say how many heads of keys and values there are.
KV_HEADS = ("n_kv_heads", "num_key_value_heads", "num_kv_heads")


@dataclass
class Ranks:
    """All processes that share a model, and which of them this one is.

    With `pipeline` each has some of the layers, else a part of every layer. `on_loss` may be replaced at any time.
    """

    group: mx.distributed.Group
    pipeline: bool
    on_loss: OnLoss
    _sender: Sender | None = None

    @property
    def rank(self) -> int:
        """This process's number. 0 serves, and decides everything."""
        return self.group.rank()

    @property
    def size(self) -> int:
        return self.group.size()

    def __str__(self) -> str:
        return f"{self.size}, {'some layers' if self.pipeline else 'a part of every layer'} at each"

    def lead(self) -> Sender:
        """The channel to the other ranks, at rank 0. Raises ChannelBroken if they do not come."""
        self._sender = open_sender(self.group, lambda said: self.on_loss(said))
        return self._sender

    def follow(self) -> Receiver:
        """The channel from rank 0, at any other."""
        return open_receiver(self.group, lambda said: self.on_loss(said))

    def end(self) -> None:
        """Let the other ranks go, if they follow this one."""
        if self._sender is not None:
            self._sender.close()

    def split(self, model: nn.Module, config: dict[str, Any]) -> None:
        """Leave this process's share of the model. Its arrays may be lazy: then the rest is never read.

        Raises ModelLoadError if mlx-lm cannot split the family, or not into so many parts, or if the ranks do not have
        the same.
        """
        self._check_same(model, config)
        try:
            if self.pipeline:
                self._split_layers(model, config)
            else:
                self._split_heads(model, config)
        except (ValueError, AssertionError, ZeroDivisionError) as error:
            raise ModelLoadError(f"the model cannot be shared by {self.size} processes: {sentence(error)}") from error

    def _check_same(self, model: nn.Module, config: dict[str, Any]) -> None:
        """Otherwise they would wait for each other for ever, or compute nonsense. Weights count by their shapes."""
        arrays = dict(tree_flatten(model.parameters()))
        shapes = [(name, array.shape, str(array.dtype)) for name, array in arrays.items()]
        known = [__version__, version("mlx"), self.pipeline, config, shapes]
        digest = sha256(json.dumps(known, sort_keys=True, default=str).encode()).digest()
        own = np.array([1, *digest], dtype=np.int32)
        with patience():
            total = np.array(mx.distributed.all_sum(mx.array(own), group=self.group, stream=mx.cpu))
        # The ring hands out anything at all if a rank has ended.
        if total[0] != self.size:
            raise ModelLoadError("another rank has ended")
        if (total != own * self.size).any():
            raise ModelLoadError("the ranks do not have the same model, or not the same version of this package or mlx")

    def _split_heads(self, model: nn.Module, config: dict[str, Any]) -> None:
        shard = getattr(model, "shard", None)
        if shard is None:
            other = "; --pipeline can" if _pipeline(model) is not None else ""
            raise ValueError(f"mlx-lm cannot split the layers of {config.get('model_type')}{other}")
        text = config.get("text_config") or config
        heads, kv_heads = text.get("num_attention_heads"), text.get("num_key_value_heads")
        # mlx-lm would give each process the part of a head.
        if isinstance(heads, int) and heads % self.size:
            raise ValueError(f"it has {heads} attention heads")
        too_few = ValueError(f"it has {kv_heads} heads of keys and values")
        if isinstance(kv_heads, int) and kv_heads % self.size and self.size % kv_heads:
            raise too_few
        shard(self.group)
        # Some families repeat such heads if there are fewer than processes.
        if any(getattr(module, name, None) == 0 for module in model.modules() for name in KV_HEADS):
            raise too_few

    def _split_layers(self, model: nn.Module, config: dict[str, Any]) -> None:
        pipeline = _pipeline(model)
        if pipeline is None:
            other = "; it can without --pipeline" if hasattr(model, "shard") else ""
            raise ValueError(f"mlx-lm cannot deal out the layers of {config.get('model_type')}{other}")
        pipeline(self.group)
        kinds = {type(layer) for layer in leaves(make_prompt_cache(model))}
        recurrent = any(issubclass(kind, ArraysCache) for kind in kinds)
        if 0 < self._total(int(recurrent)) < self.size:
            raise ValueError("recurrent layers would be at some of them alone")

    def _total(self, number: int) -> int:
        """The sum of all ranks' numbers."""
        return int(np.array(mx.distributed.all_sum(mx.array(number), group=self.group, stream=mx.cpu)))


def _pipeline(model: nn.Module) -> Callable[[mx.distributed.Group], None] | None:
    return getattr(getattr(model, "model", None), "pipeline", None)


def join(*, pipeline: bool, on_loss: OnLoss, on_waiting: Callable[[], None] = lambda: None) -> Ranks | None:
    """Wait for the other processes that mlx.launch has started; None if there is none.

    `on_waiting` is called before that: MLX then holds Python's lock, so that no thread could say anything. Raises
    RuntimeError if they cannot be reached.
    """
    # An empty file of hosts is that of a single process.
    file = os.environ.get("MLX_HOSTFILE")
    if file and os.path.getsize(file) < 2:
        return None
    on_waiting()
    group = mx.distributed.init(strict=True)
    return Ranks(group, pipeline, on_loss) if group.size() > 1 else None
