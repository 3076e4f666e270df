"""JSON schemas, from everyday ones to those that a compiler chokes on."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from hypothesis import strategies as st

from fuzz.hazards import Hazards
from fuzz.json_text import Raw
from fuzz.values import junk

Schema = Any
Strategy = st.SearchStrategy[Schema]

PATTERNS = [
    "^[a-z]+$",
    "a|b",
    "(?i)yes",
    r"\d{3}-\d{4}",
    r"^\p{L}+$",
    "^$",
    ".*",
    "(",
    "a{2,1}",
    "(?=a)b",
    r"\1(a)",
    "[^]",
]
FORMATS = [
    "date-time",
    "date",
    "time",
    "email",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "hostname",
    "duration",
    "regex",
    "nonsense",
]
NAMES = ["a", "b", "é", "日本", "", "a b", 'quo"te', "back\\slash", "\n", "👍", "$ref", "x" * 200]


@cache
def everyday() -> Strategy:
    """Small schemas of every keyword, contradictions included."""
    small, sizes = st.integers(-5, 20), st.integers(0, 8)
    leaves = st.one_of(
        st.just({}),
        st.booleans(),
        st.sampled_from(
            [{"type": name} for name in ("null", "boolean", "integer", "number", "string", "object", "array")]
        ),
        st.builds(lambda low, high: {"type": "integer", "minimum": low, "maximum": high}, small, small),
        st.builds(
            lambda low, step: {"type": "number", "exclusiveMinimum": low, "multipleOf": step}, small, st.just(0.25)
        ),
        st.builds(lambda low, high: {"type": "string", "minLength": low, "maxLength": high}, sizes, sizes),
        st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
        st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name}),
        st.lists(st.one_of(st.none(), small, st.text("aé\n", max_size=3)), max_size=3).map(lambda all: {"enum": all}),
        st.one_of(st.none(), small, st.text("ab", max_size=3), st.just({"a": [1]})).map(lambda one: {"const": one}),
        st.just({"type": ["string", "null"]}),
        st.just({"type": []}),
        st.just({"$ref": "#/$defs/missing"}),
        st.just({"$ref": "https://example.com/other.json"}),
        st.just({"$ref": "#"}),
    )
    return st.recursive(leaves, _composed, max_leaves=6)


def _composed(inner: Strategy) -> Strategy:
    several = st.lists(inner, min_size=1, max_size=3)
    properties = st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    return st.one_of(
        st.builds(
            lambda properties, required, more: {
                "type": "object",
                "properties": properties,
                "required": required,
                **more,
            },
            properties,
            st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
            st.sampled_from([{}, {"additionalProperties": False}, {"minProperties": 1}, {"maxProperties": 0}]),
        ),
        st.builds(
            lambda items, low, high: {"type": "array", "items": items, "minItems": low, "maxItems": high},
            inner,
            st.integers(0, 4),
            st.integers(0, 4),
        ),
        several.map(lambda all: {"type": "array", "prefixItems": all, "items": False}),
        st.builds(lambda keyword, all: {keyword: all}, st.sampled_from(["anyOf", "oneOf", "allOf"]), several),
        inner.map(lambda one: {"not": one}),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
        inner.map(lambda one: {"type": "object", "patternProperties": {"^a": one}, "additionalProperties": one}),
        inner.map(lambda one: {"$defs": {"it": one}, "$ref": "#/$defs/it"}),
        inner.map(lambda one: {"type": "object", "properties": {"child": {"$ref": "#"}, "a": one}}),
        inner.map(lambda one: {"type": "array", "contains": one, "uniqueItems": True}),
        inner.map(lambda one: {"type": "object", "dependentSchemas": {"a": one}, "propertyNames": one}),
    )


@cache
def guided() -> Strategy:
    """llguidance's own directions inside a schema."""
    options = st.fixed_dictionaries(
        {},
        optional={
            "whitespace_pattern": st.sampled_from(["", " *", "(", "(a{1,500}){1,500}", None]),
            "item_separator": st.sampled_from(["", ",", "  ", "\x00", 3]),
            "key_separator": st.sampled_from(["", ":", None]),
            "whitespace_flexible": st.booleans(),
            "coerce_one_of": st.booleans(),
            "lenient": st.sampled_from([True, "yes"]),
            "unknown": st.just(1),
        },
    )
    return st.builds(
        lambda schema, more: {**schema, "x-guidance": more}, st.just({"type": "array"}), options | st.just(3)
    )


def chain(size: int) -> Schema:
    defs: dict[str, Schema] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(size)}
    return {"$defs": {**defs, f"d{size}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def nested_chain(size: int) -> Schema:
    defs = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(size)}
    return {"$defs": {**defs, f"d{size}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def doubling(size: int) -> Schema:
    defs: dict[str, Schema] = {
        f"d{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "ab"}} for i in range(size)
    }
    return {"$defs": {**defs, f"d{size}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def all_of_pairs(size: int) -> Schema:
    return {"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(size)]}


BOMBS = {
    "chain of $ref": chain,
    "chain of $ref in properties": nested_chain,
    "doubling $ref": lambda size: doubling(min(size, 64)),
    "allOf of anyOf": all_of_pairs,
    "wide anyOf": lambda size: {
        "anyOf": [{"type": "object", "properties": {f"p{i}": {"const": i}}} for i in range(size)]
    },
    "wide oneOf": lambda size: {"oneOf": [{"type": "string", "pattern": f"a{{0,{i}}}"} for i in range(size)]},
    "wide enum": lambda size: {"enum": [f"value {i} " + "x" * (i % 50) for i in range(size * 10)]},
    "optional properties": lambda size: {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer"} for i in range(size)},
        "additionalProperties": False,
    },
    "required properties": lambda size: {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer"} for i in range(size)},
        "required": [f"p{i}" for i in range(size)],
    },
    "nested arrays": lambda size: Raw('{"type":"array","items":' * size + "{}" + "}" * size),
    "minItems": lambda size: {"type": "array", "items": {"type": "string"}, "minItems": size * 1000},
    "maxItems": lambda size: {
        "type": "array",
        "items": {"type": "array", "maxItems": size * 100},
        "maxItems": size * 100,
    },
    "maxLength": lambda size: {"type": "string", "minLength": size * 100, "maxLength": size * 1000},
    "minProperties": lambda size: {"type": "object", "minProperties": size, "additionalProperties": {"type": "null"}},
    "counted pattern": lambda size: {"type": "string", "pattern": f"(a{{1,{size // 2}}}){{1,{size // 2}}}"},
    "counted classes": lambda size: {"type": "string", "pattern": rf"^(\w{{0,{size}}}\d){{0,{size}}}$"},
    "patternProperties": lambda size: {
        "type": "object",
        "patternProperties": {f"^a.*b{i}$": {} for i in range(size // 10)},
    },
    "huge bounds": lambda size: {"type": "integer", "minimum": -(10**size), "maximum": Raw("9" * size)},
    "fine bounds": lambda size: {
        "type": "number",
        "minimum": Raw("0." + "1" * size),
        "maximum": Raw("0." + "2" * size),
    },
    "long const": lambda size: {"const": "a" * size * 1000},
}


@cache
def bombs() -> Strategy:
    sizes = st.sampled_from([20, 100, 300, 1000, 3000])
    return st.builds(lambda make, size: make(size), st.sampled_from(list(BOMBS.values())), sizes)


@cache
def multiples() -> Strategy:
    steps = st.one_of(
        st.sampled_from(
            [99_999_989, 1e-9, 1e308, 1e-320, 0, -3, 0.1, 3.7, 10**30, math.pi, Raw("1e-400"), Raw("1e400")]
        ),
        st.integers(1, 10**9),
    )
    kinds = st.sampled_from(["integer", "number"])
    return st.builds(
        lambda kind, step, more: {"type": kind, "multipleOf": step, **more},
        kinds,
        steps,
        st.sampled_from([{}, {"minimum": 0}, {"minimum": 1, "maximum": 2}, {"exclusiveMaximum": 1e15}]),
    )


@cache
def schemas(hazards: Hazards) -> Strategy:
    broken = st.builds(
        lambda keyword, wrong: {keyword: wrong},
        st.sampled_from(
            "type properties required items enum anyOf $ref $defs minimum pattern maxLength x-guidance".split()
        ),
        junk(hazards),
    )
    hostile = hazards.only(bombs=bombs() | guided(), multiple_of=multiples())
    return st.one_of(everyday(), everyday(), broken, *hostile, *hostile)
