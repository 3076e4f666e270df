"""Stop strings over a stream of text: cut at the first match, never leak a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the earliest stop string in text that arrives in pieces.

    `feed` returns text that can no longer become part of a match; once `matched` is set,
    nothing more comes out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.matched = min(found)
            released, self._held = self._held[:at], ""
            return released
        keep = self._pending()
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return released

    def _pending(self) -> int:
        """How many of the last characters could begin a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for size in range(longest, 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def flush(self) -> str:
        """What was held back, now that nothing more comes."""
        released, self._held = self._held, ""
        return released
