"""What ends a sequence besides the model. Stop strings: cut at the first match, never leak a part of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallm_openai.text.scanner import earliest, pending

# Takes a sequence's tokens one by one, with the text that each brings; true at the one that completes it.
Ending = Callable[[str, int], bool]


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
        found = earliest(self._held, self._stops)
        if found is not None:
            at, self.matched = found
            released, self._held = self._held[:at], ""
            return released
        keep = pending(self._held, self._stops)
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return released

    def flush(self) -> str:
        """What was held back, now that nothing more comes."""
        released, self._held = self._held, ""
        return released
