"""A client's schema means the same when llguidance gets it, or is refused by the keyword."""

from __future__ import annotations

import itertools
import json
import math
import threading
from decimal import Decimal
from fractions import Fraction
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from support.servers import demo_target

from parallm_openai.text.schema.normalize import SchemaError, closed, schema_text
from parallm_openai.text.schema.walk import copied
from parallm_openai.text.schema.wording import FORMATS, reword

TOKENS = LLTokenizer(demo_target().tokenizer.backend_tokenizer.to_str())
NAMES = ["a", "b", "c"]
LEAVES: list[Any] = [0, "x", {}, {"a": 0}]
ABSENT = object()
# Every object over those names and leaves: leaving a property out of one, or of one in it, makes another of them.
INSTANCES = LEAVES + [
    {name: value for name, value in zip(NAMES, chosen, strict=True) if value is not ABSENT}
    for chosen in itertools.product([ABSENT, *LEAVES], repeat=len(NAMES))
]

names = st.sampled_from(NAMES)
name_lists = st.lists(names, max_size=2, unique=True)
leaves = st.sampled_from([True, True, False, {"type": "integer"}, {"type": "string"}, {"const": "x"}, {"const": 0}])
references = st.sampled_from([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}])


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"properties": st.dictionaries(names, values, min_size=1, max_size=2)},
        optional={"required": name_lists, "minProperties": st.integers(0, 2), "type": st.just("object")},
    )


def company(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One or two keywords that judge the same instance as the object that they stand in."""
    several = st.lists(parts, min_size=1, max_size=3)
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "additionalProperties": leaves,
        "patternProperties": st.dictionaries(st.sampled_from(["^[ab]$", "c"]), leaves, max_size=2),
        "propertyNames": st.sampled_from([{"enum": ["a"]}, {"pattern": "[bc]"}]),
        "dependentRequired": st.dictionaries(names, name_lists, max_size=2),
        "dependentSchemas": st.dictionaries(names, parts, max_size=2),
        "unevaluatedProperties": st.booleans(),
        "enum": st.lists(st.sampled_from(INSTANCES), min_size=1, max_size=3),
        "$ref": references.map(lambda reference: reference["$ref"]),
        **dict.fromkeys(["allOf", "anyOf", "oneOf"], several),
        **dict.fromkeys(["not", "if", "then", "else"], parts),
    }
    one = st.sampled_from(sorted(keywords)).flatmap(lambda key: keywords[key].map(lambda value: {key: value}))
    return st.tuples(one, one).map(lambda both: both[0] | both[1]) | one


parts = objects(leaves) | references | name_lists.map(lambda required: {"required": required})
mixed = st.tuples(objects(leaves | parts), company(parts)).map(lambda both: both[0] | both[1])
roots = company(parts) | mixed | objects(mixed | parts)
schemas = st.tuples(roots, st.fixed_dictionaries({"one": objects(leaves), "two": mixed | objects(leaves)})).map(
    lambda both: {**both[0], "$defs": both[1]}
)


def accepted(schema: dict[str, Any]) -> list[bool]:
    validator = jsonschema.Draft202012Validator(schema)
    return [bool(validator.is_valid(instance)) for instance in INSTANCES]


@pytest.mark.slow
@settings(max_examples=600)
@given(schema=schemas)
def test_closing_takes_instances_away_adds_none_and_leaves_some(schema: dict[str, Any]) -> None:
    before = json.dumps(schema)
    try:
        original, shut = accepted(schema), accepted(closed(schema))
    except BaseException as error:
        # A reference to itself that no instance ends. In the native code of a library that is a panic.
        if isinstance(error, RecursionError) or type(error).__name__ == "PanicException":
            return
        raise
    assert json.dumps(schema) == before
    assert all(was or not now for was, now in zip(original, shut, strict=True))
    assert any(original) == any(shut)


name_schemas = st.sampled_from(
    [
        True,
        {"type": "string"},
        {"$ref": "#/$defs/names"},
        {"enum": ["a", "c", 5], "title": "Names"},
        {"const": "b"},
        {"anyOf": [{"const": "a"}, {"$ref": "#/$defs/names"}]},
        {"pattern": "[bc]", "format": "uuid"},
        {"minLength": 1},
        {"type": "string", "minLength": 2, "maxLength": 3},
        {"type": "integer"},
        {"enum": ["a"], "minLength": 3},
    ]
)
nothing = st.sampled_from([{"not": {}}, {"not": True, "title": "No"}, {"$ref": "#/$defs/nothing"}])
idle = st.sampled_from(
    [
        {"uniqueItems": False},
        {"if": False},
        {"then": False},
        {"else": False},
        {"minContains": 2},
        {"dependentSchemas": {}},
        {"format": "emoji"},
    ]
)
worded = st.tuples(
    objects(leaves | nothing) | st.fixed_dictionaries({}, optional={"additionalProperties": leaves | nothing}),
    st.fixed_dictionaries({}, optional={"propertyNames": name_schemas, "required": name_lists}),
    idle | company(objects(leaves | nothing) | nothing),
).map(lambda all: {**all[2], **all[0], **all[1]})
wordings = (worded | objects(worded | nothing)).map(
    lambda schema: {
        **schema,
        "$defs": {
            "names": {"type": "string", "enum": ["b", "z"]},
            "nothing": {"not": {}},
            "one": {"type": "integer"},
            "two": {"properties": {"a": {"$ref": "#/$defs/nothing"}}},
        },
    }
)


@pytest.mark.slow
@settings(max_examples=600)
@given(schema=wordings.filter(lambda schema: "unevaluated" not in json.dumps(schema)))
def test_other_words_mean_the_same(schema: dict[str, Any]) -> None:
    reworded = copied(schema)
    reword(reworded)
    assert accepted(reworded) == accepted(schema)


COLOURS = {"enum": ["red", "green"], "type": "string"}


@pytest.mark.parametrize(
    ("schema", "fits", "fails"),
    [
        ({"propertyNames": {"type": "string"}, "additionalProperties": {}}, ['{"x":[]}', "{}"], []),
        (
            {
                "propertyNames": {"$ref": "#/$defs/c"},
                "additionalProperties": {"type": "integer"},
                "$defs": {"c": COLOURS},
            },
            ['{"green":1,"red":2}', "{}"],
            ['{"blue":1}', '{"red":"x"}'],
        ),
        ({"propertyNames": COLOURS, "required": ["red", "green"]}, ['{"red":1,"green":2}'], ['{"red":1}']),
        ({"propertyNames": {"enum": ["a.b", 'a"\n|é']}}, ['{"a.b":1}', '{"a\\"\\n|é":1}'], ['{"axb":1}', '{"é":1}']),
        ({"propertyNames": {"pattern": "^[a-z]+$"}}, ['{"ab":1}'], ['{"A":1}', '{"":1}']),
        ({"propertyNames": {"minLength": 1, "maxLength": 2}}, ['{"é":1}', '{"ab":1}'], ['{"":1}', '{"abc":1}']),
        (
            {"properties": {"red": {"type": "integer"}, "x": {}}, "propertyNames": COLOURS},
            ['{"red":1,"green":"x"}', "{}"],
            ['{"x":1}', '{"red":"x"}'],
        ),
        ({"properties": {"d": {"not": {}}, "n": {"type": "integer"}}}, ['{"n":1}', "{}"], ['{"d":1}', '{"e":1}']),
        ({"properties": {"d": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"not": {}}}}, ["{}"], ['{"d":1}']),
        ({"properties": {"d": {"anyOf": [{"not": {}}, {"type": "null"}]}}}, ["{}", '{"d":null}'], ['{"d":1}']),
        ({"properties": {"s": {"type": "array", "uniqueItems": False}}}, ['{"s":[1,1]}'], ['{"s":1}']),
    ],
)
def test_what_llguidance_has_no_word_for_is_enforced_in_others(
    schema: dict[str, Any], fits: list[str], fails: list[str]
) -> None:
    made = matcher(schema_text({"type": "object", **schema}))
    assert [text for text in fits if not takes(made, text)] == []
    assert [text for text in fails if takes(made, text)] == []


UNKNOWN_FORMATS = "byte binary password file-path int32 jwt cuid2 emoji e164 cidrv4 decimal unknown x".split()
UNKNOWN_FORMATS += "regex uri-reference iri idn-email json-pointer uri-template".split()


@pytest.mark.parametrize("name", UNKNOWN_FORMATS)
def test_a_format_that_llguidance_does_not_know_is_ignored(name: str) -> None:
    for types in ("string", ["string", "null"]):
        made = matcher(schema_text({"type": types, "format": name, "maxLength": 3}))
        assert takes(made, '"abc"')
        assert not takes(made, '"abcd"')


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_format_that_llguidance_knows_is_enforced(name: str) -> None:
    assert not takes(matcher(schema_text({"type": "string", "format": name})), '"?"')


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {}}, "not"),
        ({"type": "string", "not": {"const": "x"}}, "not"),
        ({"type": "object", "properties": {"d": {"not": {}}}, "required": ["d"]}, "unsatisfiable"),
        ({"properties": {"s": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"properties": {"ab": {}}, "propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"propertyNames": {"format": "uuid"}}, "propertyNames"),
        (
            {"propertyNames": COLOURS, "additionalProperties": {}, "allOf": [{"$ref": "#/additionalProperties"}]},
            "propert",
        ),
    ],
)
def test_what_no_word_is_found_for_is_refused_by_name(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises((SchemaError, AssertionError), match=keyword):
        matcher(schema_text(schema))


@pytest.mark.parametrize("names", [{"pattern": "^(?!x)"}, {"pattern": "["}, {"minLength": "x"}, COLOURS])
def test_no_schema_of_names_stops_the_lenient(names: Any) -> None:
    assert takes(matcher(schema_text({"type": "object", "propertyNames": names}, lenient=True)), '{"red":1}')


def holding(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {}}, "required": [name]}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {}}, "required": ["a", "b"]},
        {"properties": {"allOf": {"description": "allOf"}}},
        {"anyOf": [{"properties": {"a": {}}}, {"$ref": "#/$defs/d"}], "$defs": {"d": {"properties": {"b": {}}}}},
        {"allOf": [{"$ref": "#/$defs/d"}], "description": "one", "$defs": {"d": {"properties": {"b": {}}}}},
        {"oneOf": [holding("a"), holding("b")]},
    ],
)
def test_what_stands_alone_is_closed_to_made_up_properties(schema: dict[str, Any]) -> None:
    shut = jsonschema.Draft202012Validator(closed(schema))
    instances = [dict.fromkeys(chosen, 0) for size in range(3) for chosen in itertools.permutations("ab", size)]
    assert any(shut.is_valid(instance) for instance in instances)
    assert not any(shut.is_valid({**instance, "made up": 0}) for instance in instances)


def kind(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": name}, name: {"type": "integer"}}, "required": ["kind"]}


def test_alternatives_told_apart_by_a_property_may_be_anyof() -> None:
    told_apart = {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": kind("a"), "b": kind("b")}}
    assert "anyOf" in closed(told_apart)
    overlapping: dict[str, Any] = {"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert closed(overlapping) == overlapping


def matcher(text: str) -> LLMatcher:
    made = LLMatcher(TOKENS, LLMatcher.grammar_from_json_schema(text), log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def takes(made: LLMatcher, text: str) -> bool:
    own = made.deep_copy()
    tokens = TOKENS.tokenize_str(text)
    return own.try_consume_tokens(tokens) == len(tokens) and own.is_accepting()


edges = st.sampled_from([0, 9, 10, 99, 2**31, 2**53, 2**53 + 1, 10**17, 10**18, 2**62, 2**63 - 1, 2**63, 10**30])
integers = st.tuples(edges, st.integers(-2, 2), st.sampled_from([1, -1])).map(lambda it: (it[0] + it[1]) * it[2])
decimals = st.floats(allow_nan=False, allow_infinity=False) | st.decimals(-999, 999, places=3).map(float)
BOUNDS = {"minimum": "__ge__", "exclusiveMinimum": "__gt__", "maximum": "__le__", "exclusiveMaximum": "__lt__"}


@settings(max_examples=300)
@given(keyword=st.sampled_from(sorted(BOUNDS)), bound=integers | decimals, whole=st.booleans())
def test_a_bound_is_kept_to_the_digit_or_refused_by_name(keyword: str, bound: float, whole: bool) -> None:
    schema = {"type": "integer" if whole else "number", keyword: bound}
    refusal = None
    try:
        text = schema_text(schema)
    except SchemaError as error:
        refusal = error
    if refusal is not None:
        assert keyword in str(refusal)
        return
    made = matcher(text)
    exact = Fraction(Decimal(repr(bound)))
    numbers = [bound + step for step in (-1, 0, 1)] if whole and isinstance(bound, int) else [bound]
    for number in [*numbers, 0, 1, -1, 10**19, -(10**19)]:
        text = format(Decimal(repr(number)), "f").removesuffix(".0")
        if not whole or "." not in text:
            fits = getattr(Fraction(text), BOUNDS[keyword])(exact)
            assert fits or not takes(made, text)
            assert not fits or takes(made, text) or text == "-0"


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "integer", "minimum": 10**30}, "minimum"),
        ({"type": "integer", "maximum": 10**30}, "maximum"),
        ({"type": "integer", "maximum": 2**64 - 1}, "maximum"),
        ({"type": "number", "minimum": math.inf}, "minimum"),
        ({"type": "number", "multipleOf": 2**32}, "multipleOf"),
        ({"type": "number", "multipleOf": 0}, "multipleOf"),
        ({"type": "string", "minLength": 2**40}, "minLength"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "array", "maxItems": 1.5}, "maxItems"),
        ({"const": 2**53 + 1}, "const"),
        ({"enum": [{"a": [10**30]}]}, "enum"),
        ({"properties": {"deep": {"items": {"exclusiveMaximum": 2**60}}}}, "exclusiveMaximum"),
        ({"allOf": [{"multipleOf": 65537}, {"multipleOf": 65539}]}, "multipleOf"),
        ({"default": math.nan}, "not finite"),
        ({"const": "\ud800"}, "surrogate"),
        ({"properties": {"a": {"x-guidance": {"lenient": True}}}}, "x-guidance"),
    ],
)
def test_what_llguidance_would_misread_is_refused_by_name(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises(SchemaError, match=keyword):
        schema_text(schema)


def test_what_cannot_be_held_is_skipped_for_the_lenient_but_not_what_makes_no_sense() -> None:
    assert takes(matcher(schema_text({"type": "integer", "minimum": 10**30}, lenient=True)), "5")
    with pytest.raises(SchemaError, match="minLength"):
        schema_text({"minLength": -1}, lenient=True)


def test_names_and_values_are_no_keywords() -> None:
    schema = {"properties": {"minimum": {"const": "x-guidance"}, "x-guidance": {"type": "integer"}}}
    assert takes(matcher(schema_text(schema)), '{"minimum":"x-guidance","x-guidance":1}')


def test_counts_may_be_written_as_decimals_and_be_as_large_as_no_answer() -> None:
    made = matcher(schema_text({"type": "string", "minLength": 2.0, "maxLength": 2**63}))
    assert takes(made, '"ab"')
    assert not takes(made, '"a"')


def nested(levels: int, around: str) -> Any:
    schema: Any = {"$ref": "#/$defs/leaf"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema} if around == "[]" else {"properties": {"a": schema}}
    return {**schema, "$defs": {"leaf": {"type": "integer", "maximum": 5}}}


@pytest.mark.parametrize(("levels", "around"), [(120, "{}"), (240, "[]")])
def test_as_deep_a_schema_as_a_body_may_hold_means_the_same(levels: int, around: str) -> None:
    texts: list[str] = []

    def from_deep_down(frames: int) -> None:
        if frames:
            from_deep_down(frames - 1)
        else:
            texts.append(schema_text(nested(levels, around)))

    thread = threading.Thread(target=from_deep_down, args=(500,))
    thread.start()
    thread.join()
    made = matcher(texts[0])
    opening, closing = ("[", "]") if around == "[]" else ('{"a":', "}")
    assert takes(made, opening * levels + "5" + closing * levels)
    assert not takes(made, opening * levels + "6" + closing * levels)


def test_references_into_what_is_moved_still_lead_there() -> None:
    schema: Any = {"type": "integer", "maximum": 5}
    for _ in range(120):
        schema = {"properties": {"a": schema}}
    schema["properties"]["b"] = {"$ref": "#" + "/properties/a" * 120}
    made = matcher(schema_text(schema))
    assert takes(made, '{"b":5}')
    assert not takes(made, '{"b":6}')


def test_a_literal_deeper_than_llguidance_reads_is_refused() -> None:
    literal: Any = 0
    for _ in range(200):
        literal = [literal]
    with pytest.raises(SchemaError, match="deep"):
        schema_text({"const": literal})
