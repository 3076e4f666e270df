"""What an answer has at random, or from the clock, besides its tokens: its seed, its ids, and when it was created.

Inside `repeatable` all of that follows from a key and a time, so that the same request is answered alike wherever and
however often it runs.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class _Draws:
    random: Random
    created: int


_own: ContextVar[_Draws | None] = ContextVar("draws", default=None)


@contextmanager
def repeatable(key: str, created: int) -> Iterator[None]:
    """Have everything that is started in this block draw what follows from the key, which must be hard to guess."""
    token = _own.set(_Draws(Random(key), created))
    try:
        yield
    finally:
        _own.reset(token)


def is_repeatable() -> bool:
    return _own.get() is not None


def new_hex() -> str:
    """32 hexadecimal digits that no other answer has."""
    own = _own.get()
    return uuid.uuid4().hex if own is None else f"{own.random.getrandbits(128):032x}"


def new_seed() -> int | None:
    """The seed of a sequence whose request gives none; None leaves it to the engine."""
    own = _own.get()
    return None if own is None else own.random.getrandbits(63)


def created() -> int:
    """When the answer was created, in seconds since 1970."""
    own = _own.get()
    return int(time.time()) if own is None else own.created
