"""Stop strings: text is cut at the first match, and no part of a match gets out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache

from parallm_openai.text.events import Content, Event


class StopMatcher:
    """Finds the stop string that is complete first in text that arrives in pieces; of several, the longest.

    `feed` returns text that can no longer become part of a match. Once `matched` is set, it returns nothing more.
    The time is proportional to the length of the text, whatever its pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_Search(stop) for stop in dict.fromkeys(stops) if stop]
        self._held: deque[str] = deque()
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        if not self._stops:
            return text
        released: list[str] = []
        for character in text if self.matched is None else "":
            self._held.append(character)
            found = [search.stop for search in self._stops if search.completes(character)]
            if found:
                self.matched = max(found, key=len)
                released += [self._held.popleft() for _ in range(len(self._held) - len(self.matched))]
                self._held.clear()
                break
            size = max(search.size for search in self._stops)
            released += [self._held.popleft() for _ in range(len(self._held) - size)]
        return "".join(released)

    def flush(self) -> str:
        """The text that was held back. What comes next is not part of the same text."""
        released = "".join(self._held)
        self._held.clear()
        for search in self._stops:
            search.size = 0
        return released


class _Search:
    """Knuth, Morris and Pratt's search: `size` is how much of `stop` the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.size = 0
        self._shorter = _shorter(stop)

    def completes(self, character: str) -> bool:
        self.size = self._after(self.size, character)
        return self.size == len(self.stop)

    def _after(self, size: int, character: str) -> int:
        return _step(self.stop, self._shorter, size, character)


@lru_cache(maxsize=256)
def _shorter(stop: str) -> list[int]:
    """For each beginning of `stop`, by its size: the size of the longest shorter beginning that it ends with."""
    shorter = [0] * len(stop)
    for at in range(1, len(stop)):
        shorter[at] = _step(stop, shorter, shorter[at - 1], stop[at])
    return shorter


def _step(stop: str, shorter: Sequence[int], size: int, character: str) -> int:
    while size and stop[size] != character:
        size = shorter[size - 1]
    return size + (stop[size] == character)


class StopCondition:
    """Looks for stop strings in the content of an answer. Thoughts and calls pass unread, and end a partial match."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._matcher = StopMatcher(stops)

    @property
    def matched(self) -> str | None:
        return self._matcher.matched

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """The events up to a match. Content that could begin one is held back until an event of another kind comes."""
        released: list[Event] = []
        for event in events:
            if self.matched:
                break
            if isinstance(event, Content):
                released += _content(self._matcher.feed(event.text))
            else:
                released += [*_content(self._matcher.flush()), event]
        return released

    def finish(self) -> list[Event]:
        return _content(self._matcher.flush())


def _content(text: str) -> list[Event]:
    return [Content(text)] if text else []
