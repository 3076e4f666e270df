"""Whose the last requests were."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

# More than are in the steps that the engine keeps, but on very large servers.
REQUESTS_KEPT = 65_536


class Owners:
    """Remembers the owner of each of the last requests, by the engine's number of it."""

    def __init__(self, size: int = REQUESTS_KEPT) -> None:
        self._size = size
        self._owners: OrderedDict[int, str] = OrderedDict()

    def note(self, requests: Iterable[int], owner: str) -> None:
        for request in requests:
            self._owners[request] = owner
        while len(self._owners) > self._size:
            self._owners.popitem(last=False)

    def of(self, request: int) -> str | None:
        """None if it is not known, or not any more."""
        return self._owners.get(request)
