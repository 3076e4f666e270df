"""Checks which numbers of a JSON schema llguidance can hold exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from typing import Any

from parallm_openai.text.schema.walk import IN_PLACE, Node, values

_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_FEWEST, _MOST = ("minLength", "minItems", "minProperties"), ("maxLength", "maxItems", "maxProperties")
# llguidance computes with f64, writes ranges of i64, takes multiples of u32, and its regexes count in u32.
_EXACT, _I64, _U32 = 2**53, 2**63, 2**32
# Nearer to 0, a range of decimals is a regex of too many brackets.
_TINY = 1e-60
# The most different ones in a schema: each is compared with each, and nobody needs as many.
_MULTIPLES = 200
# No answer is this long, so that a larger maximum is none.
_ENDLESS = 2**31


class NumberProblem(ValueError):
    """A number that llguidance would take for another one; `malformed` if JSON Schema does not allow it."""

    def __init__(self, keyword: str, value: Any, reason: str, malformed: bool = False) -> None:
        shown = json.dumps(value) if not isinstance(value, (list, dict)) else "..."
        super().__init__(f"'{keyword}' is {shown if len(shown) <= 40 else shown[:37] + '...'}, {reason}")
        self.malformed = malformed


_FAR = "which is beyond the numbers that the grammar engine holds exactly"


def settle(node: Node, on_problem: Callable[[Node, str, NumberProblem], None]) -> None:
    """Put one schema's numbers in the form that llguidance takes; call `on_problem` for each that it cannot hold.

    A value that is no number is left for llguidance to refuse.
    """
    checks = {
        **dict.fromkeys(_LOWER + _UPPER, _check_bound),
        **dict.fromkeys(_FEWEST + _MOST, _check_count),
        "multipleOf": _check_multiple,
        "const": _check_literals,
        "enum": _check_literals,
    }
    for keyword in [keyword for keyword in node if keyword in checks]:
        try:
            checks[keyword](node, keyword)
        except NumberProblem as problem:
            on_problem(node, keyword, problem)


def _check_bound(node: Node, keyword: str) -> None:
    value = node[keyword]
    if not _is_number(value):
        return
    exclusive = keyword.startswith("exclusive") or node.get("exclusiveM" + keyword[1:]) is True
    inward = value > 0 if keyword in _LOWER else value < 0
    limit = _EXACT if exclusive else 10**18 if inward else _I64
    # The largest 64-bit integer is a common maximum. llguidance rounds it up and then cuts it to the same value.
    if keyword == "maximum" and not exclusive and value == _I64 - 1 and node.get("type") == "integer":
        return
    if not _is_exact(value) or abs(value) >= limit or 0 < abs(value) < _TINY or _is_ambiguous(value):
        raise NumberProblem(keyword, value, _FAR)


def _check_count(node: Node, keyword: str) -> None:
    value = node[keyword]
    if not _is_number(value):
        return
    if value < 0 or (isinstance(value, float) and not value.is_integer()):
        if math.isinf(value) and keyword in _MOST:
            del node[keyword]
            return
        raise NumberProblem(keyword, value, "which is no count", malformed=not math.isinf(value) or value < 0)
    if value < _ENDLESS:
        node[keyword] = int(value)
    elif keyword in _MOST:
        del node[keyword]
    else:
        raise NumberProblem(keyword, value, "which is more than any answer has")


def _check_multiple(node: Node, keyword: str) -> None:
    value = node[keyword]
    if not _is_number(value):
        return
    if value <= 0 or math.isnan(value):
        raise NumberProblem(keyword, value, "which is not greater than 0", malformed=True)
    if not _is_exact(value) or scaled(value) is None:
        raise NumberProblem(keyword, value, _FAR)


def scaled(value: float) -> tuple[int, int] | None:
    """`value` as llguidance stores it: an integer, and how many of its digits are decimals. None if it cannot."""
    integer, digits = float(value), 0
    while not integer.is_integer() and integer < _U32:
        integer, digits = integer * 10, digits + 1
    exact = integer.is_integer() and Fraction(int(integer), 10**digits) == _fraction(value)
    return (int(integer), digits) if exact and integer < _U32 else None


def _check_literals(node: Node, keyword: str) -> None:
    for value in values(node[keyword]):
        if _is_number(value) and not (_is_exact(value) and (isinstance(value, float) or abs(value) < _I64)):
            raise NumberProblem(keyword, value, _FAR)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_exact(value: float) -> bool:
    """Whether llguidance reads exactly this number. It reads the digits and the power of ten each as an f64."""
    if isinstance(value, int):
        return abs(value) < 2**1000 and int(float(value)) == value
    if not math.isfinite(value):
        return False
    _, digits, exponent = Decimal(repr(abs(value))).as_tuple()
    assert isinstance(exponent, int)
    mantissa, power = float("".join(map(str, digits))), float(f"1e{abs(exponent)}")
    return math.isfinite(power) and (mantissa * power if exponent >= 0 else mantissa / power) == abs(value)


def _is_ambiguous(value: float) -> bool:
    """Whether the digits that a large float is written with are another integer than the float itself."""
    return abs(value) > _EXACT and _fraction(value) != Fraction(value)


def _fraction(value: float) -> Fraction:
    return Fraction(Decimal(repr(value))) if isinstance(value, float) else Fraction(value)


def too_many_multiples(nodes: list[Node]) -> bool:
    """Whether llguidance may be unable to compute the common multiple of two schemas for the same instance."""
    if not any((IN_PLACE | {"$ref"}) & node.keys() for node in nodes):
        return False
    found = {scaled(node["multipleOf"]) for node in nodes if _is_number(node.get("multipleOf"))}
    multiples = [each for each in found if each is not None]
    if len(multiples) > _MULTIPLES:
        return True
    return any(not _common(one, other) for one, other in combinations(multiples, 2))


def _common(one: tuple[int, int], other: tuple[int, int]) -> bool:
    digits = max(one[1], other[1])
    return one[0] * 10 ** (digits - one[1]) * other[0] * 10 ** (digits - other[1]) < _U32
