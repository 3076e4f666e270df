"""The training loop, over one or more processes: Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models.llama import Model

from demo_training.batches import Batch
from demo_training.fast_forward import cross_entropy, logits, soft_cross_entropy, softmax
from demo_training.model import named

Arrays = tuple[mx.array, ...]
Loss = Callable[[Model, Arrays], mx.array]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn."""

    steps: int
    minutes: float
    matrix_rate: float
    rate: float
    warmup: float = 0.03
    hold: float = 0.3
    log_every: int = 20
    save_minutes: float = 4.0


def next_token_loss(model: Model, batch: Arrays) -> mx.array:
    """The weighted sum of the cross entropy."""
    tokens, targets, weights, segments = batch
    return (cross_entropy(logits(model, tokens, segments), targets) * weights).sum()


def distillation_loss(teacher: Model) -> Loss:
    """Cross entropy against the teacher's whole distribution, and a little against its top choice.

    The top choice is what a greedy run accepts, so a wrong one costs extra.
    """

    def loss(model: Model, batch: Arrays) -> mx.array:
        tokens, _, weights, segments = batch
        wanted = mx.stop_gradient(logits(teacher, tokens, segments))
        best = wanted.argmax(axis=-1)
        got = logits(model, tokens, segments)
        shares: mx.array = softmax(wanted)  # type: ignore[assignment,unused-ignore]
        soft = soft_cross_entropy(got, shares)
        hard = cross_entropy(got, best)
        return ((0.7 * soft + 0.3 * hard) * weights).sum()

    return loss


def _arrays(batch: Batch) -> Arrays:
    return tuple(mx.array(a) for a in (batch.tokens, batch.targets, batch.weights, batch.segments))


class Learner:
    """Takes steps: each process finds the gradient of its own batch, and all apply the sum."""

    def __init__(self, model: Model, loss: Loss, plan: Plan, group: mx.distributed.Group) -> None:
        self.model, self.plan, self.group = model, plan, group
        self._gradient_of = self._gradient_function(loss)
        weights = named(model.parameters()).items()
        self.matrices = [name for name, weight in weights if weight.ndim == 2 and "embed" not in name]
        self.muon = optim.Muon(plan.matrix_rate, weight_decay=0.0)
        self.adamw = optim.AdamW(plan.rate, betas=[0.9, 0.97], weight_decay=0.0)

    def _gradient_function(self, loss: Loss) -> Callable[..., Any]:
        model = self.model

        def run(parameters: Any, batch: Arrays) -> mx.array:
            model.update(parameters)
            return loss(model, batch)

        gradient: Callable[..., Any] = mx.value_and_grad(run)
        return gradient

    def _gradient(self, batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        """The mean loss and gradient over the batches of all processes, sent as one array."""
        parameters = self.model.trainable_parameters()
        loss, gradient = self._gradient_of(parameters, _arrays(batch))
        self.model.update(parameters)
        weight = mx.array([float(batch.weights.sum())])
        summed = self._sum({**named(gradient), "loss": loss.reshape(1), "weight": weight})
        weight, loss = summed.pop("weight"), summed.pop("loss")
        return loss / weight, {name: leaf / weight for name, leaf in summed.items()}

    def _sum(self, leaves: dict[str, mx.array]) -> dict[str, mx.array]:
        """The sum of each array over all processes, in one message."""
        flat = mx.concatenate([leaf.reshape(-1) for leaf in leaves.values()])
        mx.eval(flat)
        flat = mx.distributed.all_sum(flat, group=self.group)
        ends = list(itertools.accumulate(leaf.size for leaf in leaves.values()))
        parts = mx.split(flat, ends[:-1])
        return {name: part.reshape(leaf.shape) for (name, leaf), part in zip(leaves.items(), parts, strict=True)}

    def step(self, batch: Batch, scale: float) -> float:
        """One update with the learning rates times `scale`; returns the loss."""
        loss, gradient = self._gradient(batch)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        parameters = named(self.model.parameters())
        self.muon.learning_rate = self.plan.matrix_rate * scale
        self.adamw.learning_rate = self.plan.rate * scale
        # Muon's own products cost as much as a fifth of the gradient: each process does its share.
        ours = set(self.matrices[self.group.rank() :: self.group.size()])
        moved = self._apply(self.muon, gradient, parameters, ours)
        zeros = {name: mx.zeros_like(parameters[name]) for name in self.matrices if name not in ours}
        changed = self._sum({name: (moved | zeros)[name] for name in self.matrices})
        changed |= self._apply(self.adamw, gradient, parameters, set(parameters) - set(self.matrices))
        self.model.update(tree_unflatten(list(changed.items())))
        mx.eval(self.model.parameters(), self.muon.state, self.adamw.state)
        return float(np.asarray(loss).max())

    @staticmethod
    def _apply(
        optimizer: optim.Optimizer,
        gradient: dict[str, mx.array],
        parameters: dict[str, mx.array],
        names: set[str],
    ) -> dict[str, mx.array]:
        ordered = sorted(names)
        moved: dict[str, mx.array] = optimizer.apply_gradients(
            {name: gradient[name] for name in ordered}, {name: parameters[name] for name in ordered}
        )
        return moved

    def agree(self, value: float) -> float:
        """The largest `value` of all processes: they must stop at the same step."""
        return float(np.asarray(mx.distributed.all_max(mx.array([value]), group=self.group)).max())


def rate_scale(progress: float, plan: Plan) -> float:
    """Warm up, hold, then go down in a straight line."""
    if progress < plan.warmup:
        return max(progress, 0.002) / plan.warmup
    if progress < plan.hold:
        return 1.0
    return max(0.02, (1.0 - progress) / (1.0 - plan.hold))


def learn(
    model: Model,
    loss: Loss,
    stream: Iterator[tuple[Batch, ...]],
    plan: Plan,
    group: mx.distributed.Group,
    save: Callable[[], None],
) -> dict[str, float]:
    """Train until the steps or the minutes are used up; save now and then."""
    learner = Learner(model, loss, plan, group)
    first = group.rank() == 0
    started = saved = time.monotonic()
    step, seen, recent = 0, 0, 0.0
    for together in stream:
        minutes = (time.monotonic() - started) / 60
        progress = learner.agree(max(step / plan.steps, minutes / plan.minutes))
        if progress >= 1.0:
            break
        value = learner.step(together[group.rank()], rate_scale(progress, plan))
        step, seen = step + 1, seen + sum(batch.tokens.size for batch in together)
        recent = value if step == 1 else 0.95 * recent + 0.05 * value
        if first and step % plan.log_every == 0:
            rate = seen / (60 * minutes + 1e-9)
            print(f"step {step} {minutes:.1f} min loss {recent:.4f} {rate:.0f} tok/s {seen} tokens", flush=True)
        if first and time.monotonic() - saved > 60 * plan.save_minutes:
            save()
            saved = time.monotonic()
    if first:
        save()
    return {"steps": step, "tokens": seen, "minutes": (time.monotonic() - started) / 60, "loss": recent}


def together(stream: Iterator[Batch], count: int) -> Iterator[tuple[Batch, ...]]:
    """Groups of `count` batches of the same row length, so that no process waits for another."""
    waiting: dict[int, list[Batch]] = {}
    for batch in stream:
        found = waiting.setdefault(batch.tokens.shape[1], [])
        found.append(batch)
        if len(found) == count:
            yield tuple(waiting.pop(batch.tokens.shape[1]))
