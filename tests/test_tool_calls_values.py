"""Python's literals in all their forms; what is no literal, or not quoted as it should be, leaves a whole call."""

from __future__ import annotations

import ast
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.parsing import cut
from support.tool_calls import GEMMAS, calls_in, content_and_calls

PYTHON = {"pythonic": "<|tool_call_start|>[CALL]<|tool_call_end|>", "llama_pythonic": "[CALL]"}
STRINGS = [
    "'''a\nb'''",
    '"""a "quoted" \'b\' \\n"""',
    '""""a" b"""',
    "r'a\\d\\' '",
    'R"\\w+"',
    "rb'\\x41'",
    "u'a'",
    "'a' 'b'",
    "'a' \"b\"\n  '''c'''",
    "'' ''",
    '""',
    "'1_000'",
    "['a' 'b', r'\\d']",
    "{'k': '''v''', 'x': 'a' 'b'}",
    "1_000",
    "-1_0.5",
    "[1_000, 2]",
]


@pytest.mark.parametrize("family", PYTHON)
@pytest.mark.parametrize("text", STRINGS)
def test_every_form_of_a_literal_is_what_python_reads(family: str, text: str) -> None:
    value = ast.literal_eval(f"({text})")
    expected = value.decode() if isinstance(value, bytes) else value
    written = PYTHON[family].replace("CALL", f"get_time(new={text}, days=1)")
    assert calls_in(family, written) == [("get_time", {"new": expected, "days": 1})]
    written = PYTHON[family].replace("CALL", f"get_time(days=1, new={text}), my-tool()")
    assert calls_in(family, written) == [("get_time", {"days": 1, "new": expected}), ("my-tool", {})]


@settings(max_examples=60)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
    luck=st.randoms(use_true_random=False),
)
def test_what_python_writes_is_read_back_equal(value: Any, luck: random.Random) -> None:
    text = f"<|tool_call_start|>[get_time(new={value!r})]<|tool_call_end|>"
    [(_, arguments)] = content_and_calls("pythonic", cut(text, luck))[1]
    assert json.loads(arguments) == {"new": value}


@pytest.mark.parametrize("family", PYTHON)
@pytest.mark.parametrize("key", ["city", "days", "deep", "new"])
@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "New York",
        "1+2",
        "1 + x[0, 1]",
        "dict(a=1, b=[2, 3])",
        "f('a, )', \"b)\")",
        "L'Aquila",
        "today()",
        "x if y else z",
        "<city>",
        "2026-01-02",
    ],
)
def test_an_expression_is_told_as_it_is_written(family: str, key: str, text: str) -> None:
    written = PYTHON[family].replace("CALL", f"get_time({key}={text}, sure=True), my-tool({key}={text})")
    assert calls_in(family, written) == [("get_time", {key: text, "sure": True}), ("my-tool", {key: text})]
    written = PYTHON[family].replace("CALL", f"get_time(many=[{text}, 1], deep={{'a': {text}}})")
    assert calls_in(family, written) == [("get_time", {"many": [text, 1], "deep": {"a": text}})]


@pytest.mark.parametrize("family", PYTHON)
def test_what_goes_on_behind_a_string_breaks_no_call(family: str) -> None:
    for text, value in (("'a' + x", "a + x"), ("'a'.upper()", "a.upper()"), ("'%s, %s' % (1, 2)", "%s, %s % (1, 2)")):
        written = PYTHON[family].replace("CALL", f"get_time(city={text}, days=1)")
        assert calls_in(family, written) == [("get_time", {"city": value, "days": 1})]


@pytest.mark.parametrize("family", GEMMAS)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("city:Paris, France", {"city": "Paris, France"}),
        ("city:Paris, France, days:3", {"city": "Paris, France", "days": 3}),
        ("days: 3,city: a, b , c , sure:true", {"days": 3, "city": "a, b , c", "sure": True}),
        ("city:Paris,<q>days<q>:3", {"city": "Paris", "days": 3}),
        ('city: "Paris"', {"city": "Paris"}),
        ('city: "Paris, at: 5", days: 3', {"city": "Paris, at: 5", "days": 3}),
        ('"city": "a\\nb", "days": 3', {"city": "a\nb", "days": 3}),
        ('deep:{"a": "b", c: ["d", <q>e<q>, f]}', {"deep": {"a": "b", "c": ["d", "e", "f"]}}),
        ("city: 'Paris'", {"city": "Paris"}),
        ('city:<q>"Paris"<q>', {"city": '"Paris"'}),
    ],
)
def test_gemmas_values_are_whole_without_their_marks(family: str, text: str, value: dict[str, Any]) -> None:
    start, quote, end = GEMMAS[family]
    written = f"{start}call:get_time{{{text.replace('<q>', quote)}}}{end}"
    assert calls_in(family, written) == [("get_time", value)]
    assert calls_in(family, f"{written}{written}") == [("get_time", value)] * 2
