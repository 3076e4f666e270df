"""Parses every JSON body within limits of size and depth; the error of a bad one names the field at fault."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import from_json

from parallm_openai.api import errors

# Reading more values would delay every other client. The longest prompts of token ids have fewer.
MAX_VALUES = 400_000
FAR = 65_536
# No route has as many fields, and no object within a body needs as many.
MAX_FIELDS, MAX_INNER_FIELDS = 256, 4096
# The parser's own limit, which the error states.
MAX_DEPTH = 200

_PLACE = re.compile(r" at line (\d+) column (\d+)$")
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\],:]', re.DOTALL)
# A number that may be too large for a float: an exponent of three digits.
_HUGE = re.compile(rb"[eE]\+?[0-9]{3}")

_REASONS = {
    "recursion limit exceeded": f"it is nested more than {MAX_DEPTH} levels deep",
    "number out of range": "a number has too many digits",
    "invalid number": "NaN and Infinity are not JSON",
    "unexpected end of hex escape": "it holds half of a surrogate pair, which is no text",
    "lone leading surrogate in hex escape": "it holds half of a surrogate pair, which is no text",
    "invalid unicode code point": "it is not UTF-8",
}


def parse(raw: bytes) -> Any:
    """The value of a JSON body. Raises ApiError naming the top-level field that is at fault."""
    if raw.count(b",") >= MAX_VALUES:
        # The field that holds this byte is most likely the long one.
        param = _field_at(raw, FAR)
        raise errors.invalid(f"The body holds more than {MAX_VALUES} values.", param, "request_too_large")
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise _fault(raw, str(error)) from error
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        # Each field would be an error of its own.
        raise errors.invalid(f"The body has {len(value)} fields.", code="request_too_large")
    if raw.count(b'":') > MAX_INNER_FIELDS and (path := _crowded(value)) is not None:
        param = str(path[0])[: errors.LONGEST_KEY] if path else None
        raise errors.invalid(f"An object has more than {MAX_INNER_FIELDS} fields.", param, "request_too_large")
    if _HUGE.search(raw) and (path := _infinite(value)) is not None:
        param = str(path[0])[: errors.LONGEST_KEY] if path and isinstance(path[0], str) else None
        raise _refused("the number is too large", param)
    return value


def _fault(raw: bytes, message: str) -> errors.ApiError:
    """The parser's error in plain words, with the field in which it occurred."""
    place = _PLACE.search(message)
    reason, at = (message[: place.start()], _offset(raw, int(place[1]), int(place[2]))) if place else (message, 0)
    param = _field_at(raw, at) if place else None
    known = _REASONS.get("invalid number" if raw[at - 1 : at + 2] in (b"NaN", b"Inf") else reason)
    if known is None:
        return errors.ApiError(400, f"The body is not valid JSON: {message}", param=param, code="invalid_json")
    return _refused(known, param)


def _refused(reason: str, param: str | None) -> errors.ApiError:
    code = "invalid_json" if param is None else "invalid_value"
    return errors.invalid(f"Invalid value for '{param or 'body'}': {reason}.", param, code)


def _offset(raw: bytes, line: int, column: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = raw.find(b"\n", start) + 1
    return start + column


def _field_at(raw: bytes, end: int) -> str | None:
    """The top-level key whose value holds the byte before `end`."""
    depth, key, last = 0, None, b""
    for match in _TOKENS.finditer(raw, 0, max(end, 1)):
        token = match[0]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
            if not depth:
                return None
        elif depth == 1 and token == b":":
            key = last
        elif depth == 1 and token == b",":
            key = None
        last = token
    try:
        return None if key is None else str(from_json(key))[: errors.LONGEST_KEY]
    except ValueError:
        return None


def _infinite(value: Any) -> tuple[str | int, ...] | None:
    """The path of a number that is infinite."""
    return _path_to(value, lambda item: isinstance(item, float) and math.isinf(item))


def _crowded(value: Any) -> tuple[str | int, ...] | None:
    """The path of an object with more fields than any needs: each could be an error of its own."""
    return _path_to(value, lambda item: isinstance(item, dict) and len(item) > MAX_INNER_FIELDS)


def _path_to(value: Any, found: Callable[[Any], bool]) -> tuple[str | int, ...] | None:
    """The path of a value within a body for which `found` holds; None if there is none."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        if found(item):
            return path
        waiting += [((*path, key), inner) for key, inner in _inside(item)]
    return None


def _inside(item: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(item, dict):
        yield from item.items()
    elif isinstance(item, list):
        yield from enumerate(item)
