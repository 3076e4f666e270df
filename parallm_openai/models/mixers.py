"""The recurrent mixers of a model, which can be run again over a part of what they have read.

A recurrent layer's mixer writes each token into a state of fixed size, and cannot take one back. But it can be called
again with the first part of what it has read in a forward, from the state before that forward. Nobody evaluates its
output then, only its state, and its linear layers return what they have computed before: no weight is read again.

The code of mlx-lm's mixers stays as it is. A class is put before their own, as for the output projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

LINEAR = (nn.Linear, nn.QuantizedLinear)
# The kinds of layer that a batch can be made of: keys and values, and recurrent states.
KNOWN_LAYERS = (KVCache, RotatingKVCache, ArraysCache)

States = list[list[mx.array | None]]
"""The state of some rows: for each recurrent layer its arrays `[rows, ...]`, None before the first token."""

# What this thread's forward is recorded in, or read from.
_pass: ContextVar[Recording | Replay | None] = ContextVar("pass", default=None)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a mixer: the number of its layer, and its arguments, with `Layer` in place of the layer's cache."""

    mixer: nn.Module
    layer: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Layer:
    """Stands for the cache of a call's layer."""


@dataclass(slots=True)
class Recording:
    """What the mixers read in one forward of `[rows, width]` tokens, and what their linear layers computed of it."""

    layers: Sequence[ArraysCache]
    rows: int
    width: int
    calls: list[Call] = field(default_factory=list)
    # By the linear layer's identity, in the order of its calls.
    outputs: dict[int, list[mx.array]] = field(default_factory=dict)

    def called(self, mixer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        caches = [value for value in (*args, *kwargs.values()) if isinstance(value, ArraysCache)]
        layer = next(place for place, own in enumerate(self.layers) if own is caches[0])
        named = {name: _without_cache(value) for name, value in kwargs.items()}
        self.calls.append(Call(mixer, layer, tuple(map(_without_cache, args)), named))

    def project(self, linear: nn.Module, x: mx.array, compute: Callable[[mx.array], mx.array]) -> mx.array:
        computed = compute(x)
        if x.ndim > 2:
            self.outputs.setdefault(id(linear), []).append(computed)
        return computed

    def replay(self, before: States, counts: Mapping[int, int], masked: bool) -> tuple[States, dict[int, int]]:
        """The states of some rows after the first `counts[row]` of their tokens, from those `before` this forward.

        Returns them, not evaluated, and the place of each row in them. `masked` says that the mixers pass over padding:
        one replay then serves all rows, otherwise there is one for the rows of each count.
        """
        if masked:
            every = [counts.get(row, 0) for row in range(self.rows)]
            return self._run(before, None, max(every), every), {row: row for row in counts}
        parts: list[States] = []
        places: dict[int, int] = {}
        for count in sorted(set(counts.values())):
            rows = [row for row, own in counts.items() if own == count]
            places |= {row: len(places) + place for place, row in enumerate(rows)}
            parts.append(self._run(before, rows, count, None))
        return joined(parts), places

    def _run(self, before: States, rows: Sequence[int] | None, count: int, lengths: Sequence[int] | None) -> States:
        replay = Replay(self, None if rows is None else mx.array(list(rows)), count, lengths)
        chosen = before if rows is None else taken(before, rows)
        layers = [state_cache(arrays, lengths) for arrays in chosen]
        with mixers_in(replay):
            for call in self.calls:
                replay.call(call, layers[call.layer])
        return [layer.cache for layer in layers]


class Replay:
    """Runs recorded calls again: over the first `count` tokens of some rows, or over all rows' first `lengths`."""

    def __init__(self, recording: Recording, rows: mx.array | None, count: int, lengths: Sequence[int] | None) -> None:
        self.recording = recording
        self.rows = rows
        self.count = count
        self.mask = None if lengths is None else mx.arange(count) < mx.array(list(lengths))[:, None]
        self._given: dict[int, int] = {}

    def call(self, call: Call, layer: ArraysCache) -> None:
        given = [layer if value is Layer else self._part(value) for value in call.args]
        named = {name: layer if value is Layer else self._part(value) for name, value in call.kwargs.items()}
        call.mixer(*given, **named)

    def project(self, linear: nn.Module, x: mx.array, compute: Callable[[mx.array], mx.array]) -> mx.array:
        if x.ndim <= 2:
            return compute(x)
        number = self._given.get(id(linear), 0)
        self._given[id(linear)] = number + 1
        remembered: mx.array = self._part(self.recording.outputs[id(linear)][number])
        return remembered

    def _part(self, value: Any) -> Any:
        """What these rows and tokens have of an argument; a mask is made anew."""
        if not isinstance(value, mx.array) or not value.ndim or value.shape[0] != self.recording.rows:
            return value
        wide = value.ndim > 1 and value.shape[1] == self.recording.width
        if wide and value.dtype == mx.bool_:
            return self.mask
        chosen = value if self.rows is None else value[self.rows]
        return chosen[:, : self.count] if wide else chosen


class Mixer(nn.Module):
    """What a recurrent mixer becomes: its calls can be recorded."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(current := _pass.get(), Recording):
            current.called(self, args, kwargs)
        return super().__call__(*args, **kwargs)


class MixerLinear(nn.Module):
    """What a linear layer of a mixer becomes: its outputs can be remembered."""

    def __call__(self, x: mx.array) -> mx.array:
        current = _pass.get()
        compute = super().__call__
        return compute(x) if current is None else current.project(self, x, compute)


class Probe(nn.Module):
    """Every module becomes one for the forward that looks for mixers: it notes whether it is handed a state cache."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = [value for value in (*args, *kwargs.values()) if isinstance(value, ArraysCache)]
        search = _search.get()
        if not own or search is None:
            return super().__call__(*args, **kwargs)
        with search.inside(self, own[0]):
            return super().__call__(*args, **kwargs)


@dataclass(slots=True)
class Search:
    """The modules that were handed a state cache: the innermost of them are the mixers."""

    found: list[nn.Module] = field(default_factory=list)
    _around: list[tuple[ArraysCache, list[bool]]] = field(default_factory=list)

    @contextmanager
    def inside(self, module: nn.Module, layer: ArraysCache) -> Iterator[None]:
        for outer, hands_on in self._around:
            hands_on[0] |= outer is layer
        hands_on = [False]
        self._around.append((layer, hands_on))
        yield
        self._around.pop()
        if not hands_on[0] and not any(module is known for known in self.found):
            self.found.append(module)


_search: ContextVar[Search | None] = ContextVar("search", default=None)


def install(network: nn.Module) -> None:
    """Have the recurrent mixers of a network record what they read, if it has any and if they do not yet.

    For one thread at a time.
    """
    if any(isinstance(module, Mixer) for module in network.modules()):
        return
    for mixer in _mixers(network):
        for module in mixer.modules():
            if type(module) in LINEAR:
                _put_before(MixerLinear, module)
        _put_before(Mixer, mixer)


def _mixers(network: nn.Module) -> list[nn.Module]:
    """The modules that hold a recurrent layer's state: found by one forward of two tokens."""
    caches = make_prompt_cache(network)
    if not any(isinstance(leaf, ArraysCache) for leaf in leaves(caches)):
        return []
    search = Search()
    # A module may have several places in the tree.
    modules = list({id(module): (module, type(module)) for module in network.modules()}.values())
    token = _search.set(search)
    try:
        for module, _ in modules:
            _put_before(Probe, module)
        network(mx.array([[0, 0]]), cache=caches)
    finally:
        _search.reset(token)
        for module, own in modules:
            module.__class__ = own
    return search.found


def _put_before(first: type[nn.Module], module: nn.Module) -> None:
    module.__class__ = _combined(first, type(module))


@cache
def _combined(first: type[nn.Module], own: type[nn.Module]) -> type[nn.Module]:
    return type(first.__name__ + own.__name__, (first, own), {})


@contextmanager
def mixers_in(current: Recording | Replay | None) -> Iterator[None]:
    """For the length of a block, this thread's mixers write to a recording, or read from one; or do neither."""
    token = _pass.set(current)
    try:
        yield
    finally:
        _pass.reset(token)


def _without_cache(value: Any) -> Any:
    return Layer if isinstance(value, ArraysCache) else value


def leaves(caches: Sequence[Any]) -> Iterator[Any]:
    """The caches of all layers, those in pairs one by one."""
    for layer in caches:
        if isinstance(layer, CacheList):
            yield from leaves(layer.caches)
        else:
            yield layer


def state_cache(arrays: Sequence[mx.array | None], lengths: Sequence[int] | None = None) -> ArraysCache:
    """mlx-lm's cache of a recurrent layer, with these arrays; of each row it reads so many tokens, or all."""
    layer = ArraysCache(len(arrays))
    layer.cache = list(arrays)
    layer.lengths = None if lengths is None else mx.array(list(lengths))
    return layer


def taken(states: States, rows: Sequence[int]) -> States:
    """Some rows of states, in that order."""
    chosen = mx.array(list(rows))
    return [[None if array is None else array[chosen] for array in layer] for layer in states]


def joined(parts: Sequence[States]) -> States:
    """The rows of several states one after the other."""
    if len(parts) == 1:
        return parts[0]
    return [
        [None if arrays[0] is None else mx.concatenate(list(arrays)) for arrays in zip(*layers, strict=True)]
        for layers in zip(*parts, strict=True)
    ]
