"""Literals as models write them without quotes, and the styles in which families write their values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import regex

_NUMBER = regex.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LOOSE_NUMBER = regex.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "True": "true", "false": "false", "False": "false"}
_NULLS = {"null": "null", "None": "null", "NaN": "null", "nan": "null", "Infinity": "null", "-Infinity": "null"}
_DIGIT_GAP = regex.compile(r"(?<=[0-9])_(?=[0-9])")


@dataclass(frozen=True)
class Style:
    """How a family writes literals.

    `raw` is a mark around strings without escapes; if there is none, strings are JSON's or Python's. `word` matches
    text that is not quoted. If `names`, keys need no quotes, and a word that is no literal is a string. If `python`,
    strings have all of Python's forms, and an expression that is no literal is a string.
    """

    word: regex.Pattern[str]
    raw: str = ""
    names: bool = False
    python: bool = False


LITERAL = Style(regex.compile(r"[^\s,:{}\[\]()\"'<>=]+"))
PYTHON = Style(LITERAL.word, python=True)
GEMMA4 = Style(regex.compile(r"[^,{}\[\]]+"), '<|"|>', names=True)
FUNCTION_GEMMA = Style(regex.compile(r"[^,{}\[\]]+"), "<escape>", names=True)


def number(word: str) -> str | None:
    """The number that the word writes, as JSON."""
    word = _DIGIT_GAP.sub("", word)
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
