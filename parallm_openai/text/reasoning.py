"""Telling what a model thinks from what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from parallm_openai.text.events import Content, Event, Reasoning
from parallm_openai.text.scanner import pending


@dataclass(frozen=True)
class ThinkingMarks:
    """The marks around a model's thinking, as text and as tokens."""

    start: str
    end: str
    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]

    def open_in(self, prompt: str) -> bool:
        """Whether a template's prompt ends inside a thinking block: the answer then begins with thoughts."""
        return prompt.rstrip().endswith(self.start)

    def open_after(self, beginning: str) -> bool:
        """Whether the beginning of an answer ends inside a thinking block."""
        return beginning.rfind(self.start) > beginning.rfind(self.end)


class ReasoningSplitter:
    """Splits `<think>thoughts</think>answer`; white space next to the marks belongs to neither.

    Only a block at the very beginning counts: later marks are part of the answer.
    """

    def __init__(self, marks: ThinkingMarks, inside: bool) -> None:
        self._marks = marks
        self._inside = inside
        self._before = not inside
        self._at_edge = True
        self._held = ""

    def feed(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        if self._before:
            self._look_for_start()
        if self._inside:
            events += self._thoughts()
        if not self._before and not self._inside:
            events += self._answer()
        return events

    def _look_for_start(self) -> None:
        stripped = self._held.lstrip()
        if stripped.startswith(self._marks.start):
            self._held = stripped[len(self._marks.start) :]
            self._before, self._inside = False, True
        elif not self._marks.start.startswith(stripped):
            self._before, self._at_edge = False, False

    def _thoughts(self) -> list[Event]:
        if self._at_edge:
            self._held = self._held.lstrip()
            self._at_edge = not self._held
        found = self._held.find(self._marks.end)
        if found >= 0:
            thoughts = self._held[:found].rstrip()
            self._held = self._held[found + len(self._marks.end) :]
            self._inside, self._at_edge = False, True
        else:
            # White space may stand right before the end mark.
            keep = pending(self._held, (self._marks.end,))
            thoughts = self._held[: len(self._held) - keep].rstrip()
            self._held = self._held[len(thoughts) :]
        return [Reasoning(thoughts)] if thoughts else []

    def _answer(self) -> list[Event]:
        if self._at_edge:
            self._held = self._held.lstrip()
            self._at_edge = not self._held
        text, self._held = self._held, ""
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        """What was held back, now that nothing more comes."""
        text, self._held = self._held, ""
        if not text:
            return []
        return [Reasoning(text)] if self._inside else [Content(text)]


class ThoughtCounter:
    """Counts the tokens of a sequence's thinking, its marks included."""

    def __init__(self, marks: ThinkingMarks, inside: bool) -> None:
        self._marks = marks
        self._inside = inside
        self._done = False
        self._recent: tuple[int, ...] = ()
        self.count = 0

    def add(self, tokens: tuple[int, ...]) -> None:
        for token in tokens:
            if self._done:
                return
            self._add(token)

    def _add(self, token: int) -> None:
        longest = max(len(self._marks.start_tokens), len(self._marks.end_tokens))
        self._recent = (*self._recent, token)[-longest:]
        if self._inside:
            self.count += 1
            self._done = self._recent[-len(self._marks.end_tokens) :] == self._marks.end_tokens
        elif self._recent[-len(self._marks.start_tokens) :] == self._marks.start_tokens:
            self._inside = True
            self.count += len(self._marks.start_tokens)
