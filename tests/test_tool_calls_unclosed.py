"""Models leave out the mark behind a value; the call is whole all the same, and text that holds marks stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.tool_calls import TEXT_CALLS, calls_in, content_and_calls

from parallm_openai.text.tools.families import FORMATS

# For each family what ends a value, and what ends the call behind it.
ENDS = {
    "qwen3_coder": ("\n</parameter>\n", "</function>\n</tool_call>"),
    "glm47": ("</arg_value>\n", "</tool_call>"),
    "longcat": ("</longcat_arg_value>\n", "</longcat_tool_call>"),
    "minimax_m2": ("</parameter>\n", "</invoke>\n</minimax:tool_call>"),
    "muse_spark": ("</atem:parameter>\n", "</atem:invoke>\n</atem:function_calls>"),
}


def unclosed(family: str, name: str, values: dict[str, str], which: int) -> str:
    """A call whose value number `which` has no mark behind it, only a line break."""
    whole = TEXT_CALLS[family](name, values)
    pieces = whole.split(ENDS[family][0])
    pieces[which : which + 2] = ["\n".join(pieces[which : which + 2])]
    return ENDS[family][0].join(pieces)


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("values", [{"city": "Rome"}, {"days": "3"}, {"city": "a\n b", "days": "3", "note": "x"}])
def test_a_value_ends_without_its_mark(family: str, values: dict[str, str]) -> None:
    expected = {key: 3 if key == "days" else value for key, value in values.items()}
    other = TEXT_CALLS[family]("my-tool", {"city": "Oslo"})
    for which in range(len(values)):
        text = unclosed(family, "get_time", values, which)
        assert calls_in(family, text) == [("get_time", expected)]
        assert calls_in(family, f"{text}\n{other}") == [("get_time", expected), ("my-tool", {"city": "Oslo"})]
        assert calls_in(family, f"{text}\n{text}") == [("get_time", expected)] * 2
        assert content_and_calls(family, [f"{text}\nSo it is."])[0].strip() == "So it is."


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("size", range(3))
def test_a_call_that_ends_early_is_whole_where_its_end_was_begun(family: str, size: int) -> None:
    text = unclosed(family, "get_time", {"days": "3", "city": "Rome"}, 1)
    end = ENDS[family][1]
    text = text.removesuffix(end) + (end, end + "\n", end.partition("\n")[0])[size]
    assert calls_in(family, text) == [("get_time", {"days": 3, "city": "Rome"})]


def test_the_end_of_a_line_ends_a_name_whose_bracket_is_left_out() -> None:
    whole = TEXT_CALLS["qwen3_coder"]("get_time", {"city": "Rome", "days": "3"})
    expected = [("get_time", {"city": "Rome", "days": 3})]
    for name in ("<function=get_time>", "<parameter=city>", "<parameter=days>"):
        text = whole.replace(name, name.removesuffix(">"))
        assert calls_in("qwen3_coder", text) == expected
        assert calls_in("qwen3_coder", text.replace("Rome\n</parameter>", "Rome")) == expected


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("after", ["", " more", "\n\nmore\n"])
def test_marks_in_a_value_with_its_own_end_are_its_text(family: str, after: str) -> None:
    between, end = ENDS[family]
    marks: list[str] = [end, *end.split("\n"), FORMATS[family].start, f"{end}\n{FORMATS[family].start}"]
    marks += [TEXT_CALLS[family]("undeclared", {"key": "x"}).partition("x")[0], f"a{between}b"]
    for mark in marks:
        value = f"if x:\n  {mark}{after}"
        arguments: dict[str, Any] = {"city": value, "days": 3}
        text = TEXT_CALLS[family]("get_time", {"city": value, "days": "3"})
        assert calls_in(family, text) == [("get_time", arguments)]
        assert json.loads(content_and_calls(family, [text])[1][0][1]) == arguments
