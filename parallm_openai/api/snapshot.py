"""Values that change only now and then, however often somebody asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Snapshot(Generic[T]):
    """What `make` gives, made anew once it is older than `seconds`."""

    def __init__(self, make: Callable[[], T], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._seconds = seconds
        self._clock = clock
        self._made = float("-inf")
        self._value: T | None = None

    def get(self) -> T:
        now = self._clock()
        value = self._value
        if value is None or now - self._made >= self._seconds:
            value = self._value = self._make()
            self._made = now
        return value
