"""What rank 0 has the other ranks do: calls on the caches of the models that they share, by number, as plain data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import mlx.core as mx
import numpy as np

from parallm_openai.distributed.channel import Sender
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of the cache `number`, and what it is called with; caches stand in it by their numbers."""

    number: int
    name: str
    given: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Share:
    """A rank's share of a model, and how a cache serves it."""

    model: LanguageModel
    ragged: Ragged


class Leader:
    """Rank 0: it numbers the caches, and sends each operation before it carries it out."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._numbers = count()
        self._dropped: list[int] = []

    def makes(self, role: str) -> Callable[[Ragged, LanguageModel], MirroredCache]:
        """Makes caches of the model that all ranks have a share of under this name."""
        return lambda ragged, model: self.mirrored(ragged.cache(model), -1, "make", (role,))

    def mirrored(self, own: BatchCache, of: int, name: str, given: tuple[Any, ...]) -> MirroredCache:
        """A cache that has just come of an operation, under a new number."""
        number = next(self._numbers)
        self.send(Operation(of, name, (number, *given)))
        made = MirroredCache(self, own, number)
        # Whoever lets go of it need not know that others have it as well.
        weakref.finalize(made, self._dropped.append, number)
        return made

    def send(self, operation: Operation) -> None:
        while self._dropped:
            self._sender.send(Operation(self._dropped.pop(), "drop"))
        self._sender.send(operation)

    def confirm(self) -> None:
        """Raises ChannelBroken if what has just been computed cannot be trusted, because another rank has ended."""
        self._sender.confirm()

    def end(self) -> None:
        """The other ranks may go."""
        self._sender.close()


class MirroredCache(BatchCache):
    """A cache at rank 0, of which every other rank has its shard."""

    def __init__(self, leader: Leader, own: BatchCache, number: int) -> None:
        self._leader, self._own, self._number = leader, own, number

    def _do(self, name: str, *given: Any) -> None:
        self._leader.send(Operation(self._number, name, given))

    def append_row(self) -> None:
        self._do("append_row")
        self._own.append_row()

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None:
        assert isinstance(other, MirroredCache)
        self._do("append_row_from", other._number, slot, length)
        self._own.append_row_from(other._own, slot, length)

    def remove_row(self, slot: int, last_length: int) -> None:
        self._do("remove_row", slot, last_length)
        self._own.remove_row(slot, last_length)

    def copy_row(self, slot: int, length: int) -> BatchCache | None:
        own = self._own.copy_row(slot, length)
        return None if own is None else self._leader.mirrored(own, self._number, "copy_row", (slot, length))

    def keep(self, slot: int, length: int) -> None:
        self._do("keep", slot, length)
        self._own.keep(slot, length)

    def beginning(self, slot: int, length: int) -> int:
        return self._own.beginning(slot, length)

    @property
    def state_tokens(self) -> int:
        return self._own.state_tokens

    def reserve(self, rows: int) -> None:
        self._do("reserve", rows)
        self._own.reserve(rows)

    def forward(self, inputs: Inputs, lengths: Sequence[int], certain: Sequence[int] | None = None) -> mx.array:
        ids = np.array(inputs.ids)
        self._do("forward", ids, list(inputs.counts), list(inputs.wanted), list(lengths), certain and list(certain))
        return _forward(self._own, inputs, lengths, certain)

    def evaluate(self) -> None:
        self._do("evaluate")
        self._own.evaluate()


def follow(operations: Iterable[Operation], shares: Mapping[str, Share]) -> None:
    """Another rank: carry out what rank 0 sends, until it ends."""
    caches: dict[int, BatchCache] = {}
    for operation in operations:
        number, given = operation.number, operation.given
        match operation.name:
            case "make":
                share = shares[given[1]]
                caches[given[0]] = share.ragged.cache(share.model)
            case "drop":
                del caches[number]
            case "copy_row":
                copied = caches[number].copy_row(*given[1:])
                assert copied is not None
                caches[given[0]] = copied
            case "append_row_from":
                caches[number].append_row_from(caches[given[0]], *given[1:])
            case "forward":
                ids, counts, wanted, lengths, certain = given
                _forward(caches[number], Inputs(mx.array(ids), counts, wanted), lengths, certain)
            case name:
                getattr(caches[number], name)(*given)


def _forward(cache: BatchCache, inputs: Inputs, lengths: Sequence[int], certain: Sequence[int] | None) -> mx.array:
    """A forward, sent off: all ranks must exchange what its layers want in the same order."""
    logits = cache.forward(inputs, lengths, certain)
    if any(inputs.wanted):
        mx.async_eval(logits)
    return logits
