"""Text that arrives in pieces, and the steps in which readers take it.

A reader is a generator: it yields when it needs more text, and continues from there once there is some. So no text is
read twice, whatever its pieces.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import TypeVar

import regex

from parallm_openai.text.scanner import pending

T = TypeVar("T")
Wait = Generator[None, None, T]
"""A step that returns a T once enough text has come."""

SPACE = regex.compile(r"\s*")
NAME = regex.compile(r"[a-zA-Z0-9_.\-]*")
LONGEST_WORD = 256
"""Names of tools have at most 64 characters, so that something much longer is no name."""

LONGEST_HELD = 2**20
"""The most text before a call's name, if its arguments come first: text must not be held back for ever."""


class NotACall(ValueError):
    """The text cannot be read as a tool call. `unread` was taken, but belongs to no value."""

    def __init__(self, reason: str, unread: str = "") -> None:
        super().__init__(reason)
        self.unread = unread


class Ended(Exception):
    """The text ended in the middle of a step."""


class Source:
    """The text not yet taken, and a copy of the text taken since `hold`, which may have to be given back."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._held: list[str] = []
        self._held_size = 0
        self._held_from = 0

    def feed(self, text: str) -> None:
        if self._held_from < self.at:
            self._held.append(self.text[self._held_from : self.at])
            self._held_size += self.at - self._held_from
        self.text = self.text[self.at :] + text
        self.at = self._held_from = 0

    def hold(self) -> None:
        """Forget the text taken so far."""
        self._held.clear()
        self._held_size = 0
        self._held_from = self.at

    def held(self) -> str:
        """The text taken since `hold`."""
        return "".join(self._held) + self.text[self._held_from : self.at]

    def bound(self) -> None:
        """Raise NotACall if too much is held."""
        if self._held_size + self.at - self._held_from > LONGEST_HELD:
            raise NotACall("too long before a name")

    def rest(self) -> str:
        """Take all the text that has come."""
        rest, self.at = self.text[self.at :], len(self.text)
        return rest

    def give_back(self, keep: int) -> None:
        """Return to the place of `hold`, or `keep` characters behind it."""
        if self._held:
            self.text = self.held() + self.text[self.at :]
            self._held_from = 0
        self.at = self._held_from + keep
        self.hold()

    def put_back(self, text: str) -> None:
        """Return to the place before `text`, which was taken last."""
        if len(text) <= self.at:
            self.at -= len(text)
            return
        held = self.held().removesuffix(text)
        self.text = text + self.text[self.at :]
        self._held, self._held_size = [held], len(held)
        self.at = self._held_from = 0

    def more(self) -> Wait[None]:
        if self.ended:
            raise Ended
        yield

    def peek(self) -> Wait[str]:
        """The next character, without taking it; "" at the end."""
        while self.at == len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def run(self, pattern: regex.Pattern[str], longest: int | None = None) -> Wait[str]:
        """Take the characters that come next and match; there may be none."""
        pieces: list[str] = []
        size = 0
        while True:
            match = pattern.match(self.text, self.at)
            if match is not None and match.end() > self.at:
                pieces.append(match[0])
                size += len(match[0])
                self.at = match.end()
            if longest is not None and size > longest:
                raise NotACall("too long for a name")
            if self.at < len(self.text) or self.ended:
                return "".join(pieces)
            yield

    def match(self, *marks: str) -> Wait[str]:
        """Take the first of the marks that comes next; "" if none does. Raises Ended in the middle of one."""
        longest = max(map(len, marks))
        while True:
            here = self.text[self.at : self.at + longest]
            for mark in marks:
                if here.startswith(mark):
                    self.at += len(mark)
                    return mark
                if mark.startswith(here) and (here or not self.ended):
                    break
            else:
                return ""
            yield from self.more()

    def need(self, *marks: str) -> Wait[str]:
        """Take the first of the marks that comes next. Raises NotACall if none does, Ended at the end."""
        mark = yield from self.match(*marks)
        if not mark:
            if self.at == len(self.text):
                raise Ended
            raise NotACall(f"none of {marks}")
        return mark

    def before(self, *marks: str) -> Wait[tuple[str, str]]:
        """Take a piece of text without any of the marks, and the mark behind it if that has come.

        Text that may be the beginning of a mark is not taken, even at the end.
        """
        longest = max(map(len, marks))
        while True:
            found = _any_of(marks).search(self.text, self.at)
            if found is not None:
                piece = self.text[self.at : found.start()]
                self.at = found.end()
                return piece, found[0]
            end = len(self.text)
            end -= pending(self.text[max(self.at, end - longest) :], marks)
            if end > self.at:
                piece, self.at = self.text[self.at : end], end
                return piece, ""
            yield from self.more()

    def until(self, *marks: str) -> Wait[tuple[str, str]]:
        """Take the text up to the first of the marks, and that mark."""
        pieces: list[str] = []
        mark = ""
        while not mark:
            piece, mark = yield from self.before(*marks)
            pieces.append(piece)
        return "".join(pieces), mark


@lru_cache(maxsize=256)
def _any_of(marks: tuple[str, ...]) -> regex.Pattern[str]:
    return regex.compile("|".join(map(regex.escape, marks)))
