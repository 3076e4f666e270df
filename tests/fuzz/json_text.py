"""JSON as a hostile client writes it: what Python's encoder has no words for, and how to find a way through it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[str | int, ...]


class Raw(str):
    """Text that stands in the body as it is: `NaN`, `1e999`, ten thousand brackets."""

    def __repr__(self) -> str:
        return f"Raw({str(self)[:40]!r}, {len(self)})"


class Pairs(list[tuple[str, Any]]):
    """An object as its pairs, so that a key may come twice."""


def encode(value: Any) -> str:
    """The value's JSON; lone surrogates become escapes."""
    match value:
        case Raw():
            return str(value)
        case Pairs():
            return "{" + ",".join(f"{json.dumps(key)}:{encode(inner)}" for key, inner in value) + "}"
        case dict():
            return encode(Pairs((str(key), inner) for key, inner in value.items()))
        case list() | tuple():
            return "[" + ",".join(map(encode, value)) + "]"
    return json.dumps(value)


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value inside, the whole first."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and not isinstance(value, Pairs):
        for index, inner in enumerate(value[:20]):
            yield from places(inner, (*path, index))


def changed(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """A copy in which the value at `path` is what `change` makes of it; siblings are shared."""
    if not path:
        return change(value)
    first, rest = path[0], path[1:]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[first] = changed(value[first], rest, change)  # type: ignore[index]
    return copy


def without(value: Any, path: Path) -> Any:
    """A copy without what stands at `path`."""

    def dropped(parent: Any) -> Any:
        if isinstance(parent, dict):
            return {key: inner for key, inner in parent.items() if key != path[-1]}
        return [inner for index, inner in enumerate(parent) if index != path[-1]]

    return changed(value, path[:-1], dropped)


def names_a_field(param: str, value: Any, known: frozenset[str]) -> bool:
    """Whether `messages[0].content` leads to a place in the request; only what it ends in may be absent."""
    if not isinstance(value, (dict, Pairs)):
        return False
    # Long keys are cut.
    if any(key == param or (len(param) >= 64 and key.startswith(param)) for key in _object(value)):
        return True
    steps = re.findall(r"[^.\[\]]+|\[\d+\]", param)
    if not steps or "".join(steps) != param.replace(".", ""):
        return False
    place: Any = value
    for index, step in enumerate(steps):
        inner = _step(place, step)
        if inner is _ABSENT:
            return index == len(steps) - 1 and (index > 0 or step in known)
        place = inner
    return True


_ABSENT = object()


def _object(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Pairs) else value


def _step(place: Any, step: str) -> Any:
    if step.startswith("["):
        index = int(step[1:-1])
        return place[index] if isinstance(place, list) and index < len(place) else _ABSENT
    return _object(place).get(step, _ABSENT) if isinstance(place, (dict, Pairs)) else _ABSENT
