"""Reads values as models write them, and writes them as JSON while they arrive.

Models write JSON, Python's literals, and Gemma's literals, whose strings stand between marks of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum, auto

import regex

from parallm_openai.text.scanner import pending
from parallm_openai.text.tools.literals import LITERAL, Style, literal
from parallm_openai.text.tools.source import NotACall, Source, Wait

DEEPEST = 200
"""Many JSON parsers fail on values that are nested much deeper."""
_SPACE = regex.compile(r"\s+")
_PLAIN = {
    '"': regex.compile(r'[^"\\\x00-\x1f]+'),
    "'": regex.compile(r"[^'\"\\\x00-\x1f]+"),
}
_JSON_ESCAPE = regex.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_CODE_ESCAPE = regex.compile(r"\\(?:x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8})")
_ESCAPE_SIZES = {"u": 6, "x": 4, "U": 10}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


# In an unquoted text a comma ends the value if another key follows.
_GEMMA_NEXT = regex.compile(r""",\s{0,16}(?:["']?[^\W\d][\w\-]{0,64}["']?\s{0,16}:|<\|"\|>|<escape>)""")
_PREFIX = regex.compile(r"[rRbBuUfF]{0,2}(?=[\"'])")
_PREFIX_BEGUN = regex.compile(r"[rRbBuUfF]{1,2}\Z")
_EXPRESSION = regex.compile(r"[^,()\[\]{}\"']+")
_QUOTED = regex.compile(r"(?:[^\"'\\]|\\.)+", regex.DOTALL)
_GEMMA_KEY = regex.compile(r"[^,:{}\[\]]+")


class _Next(Enum):
    VALUE = auto()
    KEY = auto()
    COLON = auto()
    AFTER = auto()


class ValueReader:
    """Finds the end of a value that arrives in pieces, and writes the value as JSON."""

    def __init__(self, style: Style, word: Callable[[str], str | None] = literal) -> None:
        """`word` reads an unquoted value that is not inside another."""
        self._style = style
        self._outer_word = word
        self._next = _Next.VALUE
        self._open: list[str] = []
        self._quote = ""
        self._plain_backslash = False
        # Python joins strings that follow each other, so that one ends only when something else follows.
        self._joining = False
        self._word: list[str] = []
        self._brackets: list[str] = []
        self._word_quote = ""
        self._gap: list[str] = []
        self._comma = False
        self._out: list[str] = []
        self.done = False
        self.failed = False
        self.unread = ""

    def feed(self, text: str, at: int) -> tuple[int, str]:
        """Read on from `at`: how far, and what was read. Stays at what may go on in more text."""
        while at < len(text) and not self.done and not self.failed:
            after = self._step(text, at)
            if after < 0:
                break
            at = after
        out = "".join(self._out)
        self._out.clear()
        return at, out

    def _step(self, text: str, at: int) -> int:
        if self._quote:
            return self._string(text, at)
        if self._word:
            return self._word_on(text, at)
        return self._join(text, at) if self._joining else self._token(text, at)

    def finish(self) -> str | None:
        """The rest of the value if it is a word at the end of the text, else None."""
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
        if self._style.python and (after := self._python_string(text, at)):
            return after
        if character == '"' or (character == "'" and not raw):
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

    def _python_string(self, text: str, at: int) -> int:
        """Begin or continue a string whose quote comes next. Returns 0 if none does, -1 if that is not yet clear."""
        prefix = _PREFIX.match(text, at)
        if prefix is None:
            return -1 if _PREFIX_BEGUN.match(text, at) else 0
        quote = text[prefix.end()]
        here = text[prefix.end() : prefix.end() + 3]
        if len(here) < 3 and not here.strip(quote):
            return -1
        quote = here if here == 3 * quote else quote
        self._plain_backslash = "r" in prefix[0].lower()
        if not self._joining:
            return self._begin_string(quote, prefix.end())
        self._gap.clear()
        self._quote, self._joining = quote, False
        return prefix.end() + len(quote)

    def _join(self, text: str, at: int) -> int:
        """Behind a Python string."""
        space = _SPACE.match(text, at)
        if space is not None:
            self._gap.append(space[0])
            return space.end()
        if after := self._python_string(text, at):
            return after
        if text[at] in ",)]}":
            self._joining = False
            self._out.append('"')
            self._end_value()
            return at
        # An operator or a method makes it an expression, which is passed on as it is written.
        self._word.extend(self._gap)
        self._gap.clear()
        return self._expression(text, at)

    def _string(self, text: str, at: int) -> int:
        if self._quote == self._style.raw:
            return self._raw_string(text, at)
        if text[at] == self._quote[0]:
            if text.startswith(self._quote, at):
                return self._end_string(at + len(self._quote))
            if self._quote.startswith(text[at:]):
                return -1
        if text[at] == "\\":
            return self._escape(text, at)
        plain = _PLAIN[self._quote[0]].match(text, at)
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
        self._quote, self._plain_backslash = "", False
        if self._style.python and self._next is not _Next.KEY:
            self._joining = True
            return at
        self._out.append('"')
        if self._next is _Next.KEY:
            self._next = _Next.COLON
        else:
            self._end_value()
        return at

    def _escape(self, text: str, at: int) -> int:
        size = 2 if self._plain_backslash else _ESCAPE_SIZES.get(text[at + 1 : at + 2], 2)
        if len(text) - at < size:
            return -1
        if self._plain_backslash:
            self._out.append(json.dumps(text[at : at + 2], ensure_ascii=False)[1:-1])
            return at + 2
        if (escape := _JSON_ESCAPE.match(text, at)) is not None:
            self._out.append(escape[0])
            return escape.end()
        if (code := _CODE_ESCAPE.match(text, at)) is not None and (point := int(code[0][2:], 16)) <= 0x10FFFF:
            self._out.append(json.dumps(chr(point))[1:-1])
            return code.end()
        if text[at + 1 : at + 2] == "'":
            self._out.append("'")
            return at + 2
        # There is no such escape: the backslash itself was meant.
        self._out.append("\\\\")
        return at + 1

    def _begin_word(self, text: str, at: int) -> int:
        if self._next not in (_Next.VALUE, _Next.KEY):
            self.failed = True
            return at
        return self._word_on(text, at)

    def _word_on(self, text: str, at: int) -> int:
        if self._style.python and self._next is _Next.VALUE:
            return self._expression(text, at)
        key = self._next is _Next.KEY and self._style.names
        match = (_GEMMA_KEY if key else self._style.word).match(text, at)
        if match is not None:
            self._word.append(match[0])
            return match.end()
        if self._style.names and not key and not self._open and text[at] == ",":
            following = _GEMMA_NEXT.match(text, at, partial=True)
            if following is None:
                self._word.append(",")
                return at + 1
            if following.partial:
                return -1
        self._end_word()
        return at

    def _expression(self, text: str, at: int) -> int:
        """Python up to the comma or the bracket behind it."""
        character = text[at]
        end = at + 1
        if self._word_quote:
            if character == self._word_quote:
                self._word_quote = ""
            elif (quoted := _QUOTED.match(text, at)) is not None:
                end = quoted.end()
            elif character == "\\":
                return -1
        elif (plain := _EXPRESSION.match(text, at)) is not None:
            end = plain.end()
        elif character in "\"'":
            # In a word it is an apostrophe.
            if character == '"' or not (self._word and self._word[-1][-1:].isalnum()):
                self._word_quote = character
        elif character in _CLOSERS:
            self._brackets.append(_CLOSERS[character])
        elif self._brackets:
            if character != "," and character != self._brackets.pop():
                self.failed, self.unread = True, "".join(self._word)
                return at
        else:
            self._end_word()
            return at
        self._word.append(text[at:end])
        return end

    def _end_word(self) -> None:
        word = "".join(self._word).rstrip()
        self._word.clear()
        if self._joining:
            self._joining = False
            self._out.append(json.dumps(word, ensure_ascii=False)[1:])
            self._end_value()
            return
        word = word.lstrip()
        bare = self._style.names or (self._style.python and word)
        if self._next is _Next.KEY:
            # Python knows keys that are numbers.
            value = json.dumps(word, ensure_ascii=False) if bare or literal(word) else None
        else:
            value = (literal if self._open else self._outer_word)(word)
            if value is None and bare:
                value = json.dumps(word, ensure_ascii=False)
        if value is None:
            self.failed, self.unread = True, word
            return
        self._write(value)
        if self._next is _Next.KEY:
            self._next = _Next.COLON
        else:
            self._end_value()


def read_value(source: Source, reader: ValueReader, emit: Callable[[str], None]) -> Wait[None]:
    """Take a value and `emit` it piece by piece. Raises NotACall if the text is no value."""
    while True:
        source.at, text = reader.feed(source.text, source.at)
        emit(text)
        if reader.done:
            return
        if reader.failed:
            raise NotACall("not a value", reader.unread)
        if source.ended and (word := reader.finish()) is not None:
            emit(word)
            return
        yield from source.more()


def to_json(text: str, style: Style = LITERAL) -> str | None:
    """The value that the text writes, as JSON; None if it writes none."""
    reader = ValueReader(style)
    at, value = reader.feed(text, 0)
    value += reader.finish() or ""
    return value.strip() if reader.done and not text[at:].strip() else None
