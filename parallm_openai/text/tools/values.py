"""Values as models write them, put into JSON while they arrive.

Besides JSON these are Python's literals, and Gemma's, whose strings stand between marks of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import regex

from parallm_openai.text.scanner import pending
from parallm_openai.text.tools.source import NotACall, Source, Wait

DEEPEST = 200
"""Readers of JSON give up, or fail, on values nested much deeper."""
_SPACE = regex.compile(r"\s+")
_NUMBER = regex.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LOOSE_NUMBER = regex.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "True": "true", "false": "false", "False": "false"}
_NULLS = {"null": "null", "None": "null", "NaN": "null", "nan": "null", "Infinity": "null", "-Infinity": "null"}
_PLAIN = {
    '"': regex.compile(r'[^"\\\x00-\x1f]+'),
    "'": regex.compile(r"[^'\"\\\x00-\x1f]+"),
}
_JSON_ESCAPE = regex.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_CODE_ESCAPE = regex.compile(r"\\(?:x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8})")
_ESCAPE_SIZES = {"u": 6, "x": 4, "U": 10}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


@dataclass(frozen=True)
class Style:
    """`raw` is a mark around strings that know no escapes; without one, strings are JSON's or Python's.

    `word` matches what is not quoted. With `names` keys need no quotes, and a word that is no literal is a string.
    """

    word: regex.Pattern[str]
    raw: str = ""
    names: bool = False


LITERAL = Style(regex.compile(r"[^\s,:{}\[\]()\"'<>=]+"))
GEMMA4 = Style(regex.compile(r"[^,{}\[\]]+"), '<|"|>', names=True)
FUNCTION_GEMMA = Style(regex.compile(r"[^,{}\[\]]+"), "<escape>", names=True)
_GEMMA_KEY = regex.compile(r"[^,:{}\[\]]+")


def number(word: str) -> str | None:
    """The number that the word writes, as JSON."""
    if _NUMBER.fullmatch(word):
        return word
    if not _LOOSE_NUMBER.fullmatch(word):
        return None
    if word.lstrip("+-").isdigit():
        digits = word.lstrip("+-").lstrip("0") or "0"
        return f"-{digits}" if word.startswith("-") else digits
    value = float(word)
    return repr(value) if math.isfinite(value) else None


def boolean(word: str) -> str | None:
    return _WORDS.get(word)


def literal(word: str) -> str | None:
    """What an unquoted word means, as JSON."""
    return _WORDS.get(word) or _NULLS.get(word) or number(word)


class _Next(Enum):
    VALUE = auto()
    KEY = auto()
    COLON = auto()
    AFTER = auto()


class ValueReader:
    """Finds where a value ends, fed in pieces, and writes it as JSON."""

    def __init__(self, style: Style, word: Callable[[str], str | None] = literal) -> None:
        """`word` reads an unquoted value that is not inside another."""
        self._style = style
        self._outer_word = word
        self._next = _Next.VALUE
        self._open: list[str] = []
        self._quote = ""
        self._word: list[str] = []
        self._gap: list[str] = []
        self._comma = False
        self._out: list[str] = []
        self.done = False
        self.failed = False
        self.unread = ""

    def feed(self, text: str, at: int) -> tuple[int, str]:
        """Read on from `at`: how far, and what was read. Stays at what may go on in more text."""
        while at < len(text) and not self.done and not self.failed:
            step = self._string if self._quote else self._word_on if self._word else self._token
            after = step(text, at)
            if after < 0:
                break
            at = after
        out = "".join(self._out)
        self._out.clear()
        return at, out

    def finish(self) -> str | None:
        """The rest of the value, if it is a word that ends where the text does; else None."""
        if not self._word or self._open or self._outer_word("".join(self._word).strip()) is None:
            return None
        self._end_word()
        return "".join(self._out)

    def _token(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        if space is not None:
            self._gap.append(space[0])
            return space.end()
        character = text[at]
        raw = self._style.raw
        if raw and raw.startswith(text[at : at + len(raw)]):
            if len(text) - at < len(raw):
                return -1
            if text.startswith(raw, at):
                return self._begin_string(raw, at)
        if not raw and character in "\"'":
            return self._begin_string(character, at)
        if character in "{[(":
            self._begin_container(character)
        elif character in "}])":
            self._end_container(character)
        elif character == ",":
            self._after(_Next.AFTER, _Next.KEY if self._open and self._open[-1] == "}" else _Next.VALUE)
            self._comma = True
        elif character == ":":
            self._after(_Next.COLON, _Next.VALUE)
            self._write(":")
        else:
            return self._begin_word(text, at)
        return at + 1

    def _after(self, expected: _Next, then: _Next) -> None:
        if self._next is not expected or not self._open:
            self.failed = True
        self._next = then

    def _write(self, text: str) -> None:
        """Write what follows, with the comma and the space before it."""
        if self._comma:
            self._out.append(",")
            self._comma = False
        if self._open or self._next is not _Next.VALUE:
            self._out += self._gap
        self._gap.clear()
        self._out.append(text)

    def _begin_container(self, character: str) -> None:
        if self._next is not _Next.VALUE or len(self._open) == DEEPEST:
            self.failed = True
            return
        self._write("[" if character == "(" else character)
        self._open.append(_CLOSERS[character])
        self._next = _Next.KEY if character == "{" else _Next.VALUE

    def _end_container(self, character: str) -> None:
        value_missing = self._next is _Next.COLON or (self._next is _Next.VALUE and character == "}")
        if value_missing or not self._open or self._open[-1] != character:
            self.failed = True
            return
        # A comma before the end is Python's custom, and a slip of models in JSON.
        self._comma = False
        self._write("]" if character == ")" else character)
        self._open.pop()
        self._end_value()

    def _end_value(self) -> None:
        self._next = _Next.AFTER
        self.done = not self._open

    def _begin_string(self, quote: str, at: int) -> int:
        if self._next not in (_Next.VALUE, _Next.KEY):
            self.failed = True
            return at
        self._write('"')
        self._quote = quote
        return at + len(quote)

    def _string(self, text: str, at: int) -> int:
        if self._style.raw:
            return self._raw_string(text, at)
        if text[at] == self._quote:
            return self._end_string(at + 1)
        if text[at] == "\\":
            return self._escape(text, at)
        plain = _PLAIN[self._quote].match(text, at)
        if plain is not None:
            self._out.append(plain[0])
            return plain.end()
        self._out.append(json.dumps(text[at])[1:-1])
        return at + 1

    def _raw_string(self, text: str, at: int) -> int:
        end = text.find(self._quote, at)
        stop = end
        if end < 0:
            tail = text[max(at, len(text) - len(self._quote)) :]
            stop = len(text) - pending(tail, (self._quote,))
        self._out.append(json.dumps(text[at:stop], ensure_ascii=False)[1:-1])
        if end >= 0:
            return self._end_string(end + len(self._quote))
        return stop if stop > at else -1

    def _end_string(self, at: int) -> int:
        self._quote = ""
        self._out.append('"')
        if self._next is _Next.KEY:
            self._next = _Next.COLON
        else:
            self._end_value()
        return at

    def _escape(self, text: str, at: int) -> int:
        size = _ESCAPE_SIZES.get(text[at + 1 : at + 2], 2)
        if len(text) - at < size:
            return -1
        if (escape := _JSON_ESCAPE.match(text, at)) is not None:
            self._out.append(escape[0])
            return escape.end()
        if (code := _CODE_ESCAPE.match(text, at)) is not None and (point := int(code[0][2:], 16)) <= 0x10FFFF:
            self._out.append(json.dumps(chr(point))[1:-1])
            return code.end()
        if text[at + 1 : at + 2] == "'":
            self._out.append("'")
            return at + 2
        # No escape that there is: the backslash was meant.
        self._out.append("\\\\")
        return at + 1

    def _begin_word(self, text: str, at: int) -> int:
        if self._next not in (_Next.VALUE, _Next.KEY):
            self.failed = True
            return at
        return self._word_on(text, at)

    def _word_on(self, text: str, at: int) -> int:
        key = self._next is _Next.KEY and self._style.names
        match = (_GEMMA_KEY if key else self._style.word).match(text, at)
        if match is not None:
            self._word.append(match[0])
            return match.end()
        self._end_word()
        return at

    def _end_word(self) -> None:
        word = "".join(self._word).strip()
        self._word.clear()
        if self._next is _Next.KEY:
            # Python knows keys that are numbers.
            value = json.dumps(word, ensure_ascii=False) if self._style.names or literal(word) else None
        else:
            value = (literal if self._open else self._outer_word)(word)
            if value is None and self._style.names:
                value = json.dumps(word, ensure_ascii=False)
        if value is None:
            self.failed, self.unread = True, word
            return
        self._write(value)
        if self._next is _Next.KEY:
            self._next = _Next.COLON
        else:
            self._end_value()


def read_value(source: Source, reader: ValueReader, tell: Callable[[str], None]) -> Wait[None]:
    """Take a value, telling it piece by piece. Raises NotACall where it is none."""
    while True:
        source.at, text = reader.feed(source.text, source.at)
        tell(text)
        if reader.done:
            return
        if reader.failed:
            raise NotACall("not a value", reader.unread)
        if source.ended and (word := reader.finish()) is not None:
            tell(word)
            return
        yield from source.more()


def to_json(text: str, style: Style = LITERAL) -> str | None:
    """The value that the text writes, as JSON; None if it writes none."""
    reader = ValueReader(style)
    at, value = reader.feed(text, 0)
    value += reader.finish() or ""
    return value.strip() if reader.done and not text[at:].strip() else None
