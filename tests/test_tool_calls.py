"""Calls are read by what they say, not by how they are spelt; what is no call comes out as it was written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.parsing import cut
from support.tool_calls import (
    GEMMAS,
    JSON_CALLS,
    NAMES,
    TEXT_CALLS,
    TOOLS,
    calls_in,
    content_and_calls,
    joined,
)

from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.events import CallArguments
from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.tools.families import FORMATS
from parallm_openai.text.tools.stream import ToolSplitter


def without_arguments(family: str, name: str) -> str:
    if family in JSON_CALLS:
        return JSON_CALLS[family](name, "{}")
    if family in TEXT_CALLS:
        return TEXT_CALLS[family](name, {})
    if family in GEMMAS:
        start, _, end = GEMMAS[family]
        return f"{start}call:{name}{{}}{end}"
    if family == "deepseek_v32":
        return f'<｜DSML｜function_calls>\n<｜DSML｜invoke name="{name}">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'
    start, end = FORMATS[family].start, FORMATS[family].end
    return f"{start}[{name}()]{end}"


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_the_api_takes_survives(family: str, name: str) -> None:
    assert calls_in(family, without_arguments(family, name)) == [(name, {})]


@pytest.mark.parametrize("family", FORMATS)
def test_a_call_of_a_tool_that_was_not_declared_is_the_text_that_it_is(family: str) -> None:
    text = f"So: {without_arguments(family, 'undeclared')}  "
    assert calls_in(family, text, text) == []
    alone = without_arguments(family, "undeclared")
    assert calls_in(family, alone, alone) == []


@pytest.mark.parametrize("family", sorted(FORMATS.keys() - {"llama3_json", "llama_pythonic"}))
def test_a_call_that_was_not_declared_takes_no_other_with_it(family: str) -> None:
    good, bad = (without_arguments(family, name) for name in ("get_time", "undeclared"))
    assert calls_in(family, f"{bad}\n{good}", bad) == [("get_time", {})]
    assert calls_in(family, f"{good}\n{bad}", f"\n{bad}") == [("get_time", {})]


LISTS = {
    "nemotron": '<TOOLCALL>[{"name": "NAME0"}, {"name": "NAME1"}]</TOOLCALL>',
    "mistral": '[TOOL_CALLS][{"name": "NAME0"}, {"name": "NAME1"}]',
    "llama3_json": '[{"name": "NAME0"}, {"name": "NAME1"}]',
    "llama_pythonic": "[NAME0(), NAME1()]",
    "pythonic": "<|tool_call_start|>[NAME0(), NAME1()]<|tool_call_end|>",
}


@pytest.mark.parametrize("family", LISTS)
def test_in_a_list_the_declared_are_called_and_the_others_told_as_text(family: str) -> None:
    for names in (("get_time", "nobody"), ("nobody", "get_time")):
        text = LISTS[family].replace("NAME0", names[0]).replace("NAME1", names[1])
        content, calls = content_and_calls(family, list(text))
        assert calls == [("get_time", "{}")]
        assert "nobody" in content
        assert "get_time" not in content
    both = LISTS[family].replace("NAME0", "get_time").replace("NAME1", "my-tool")
    assert calls_in(family, both) == [("get_time", {}), ("my-tool", {})]


ARGUMENTS: dict[str, Any] = {"calls": [{"name": "get_time", "arguments": {"name": "x"}}], "name": "get_time"}
OBJECTS = {"hermes": ("<tool_call>", "</tool_call>"), "llama3_json": ("", ""), "mistral": ("[TOOL_CALLS]", "")} | {
    "nemotron": ("<TOOLCALL>", "</TOOLCALL>"),
    "command_r": ("<|START_ACTION|>", "<|END_ACTION|>"),
    "glm47": ("<tool_call>", "</tool_call>"),
    "qwen3_coder": ("<tool_call>\n", "\n</tool_call>"),
}


@pytest.mark.parametrize("family", OBJECTS)
@settings(max_examples=40)
@given(luck=st.randoms(use_true_random=False), indent=st.sampled_from([None, 1]), listed=st.booleans())
def test_an_object_is_read_by_its_own_keys_in_any_order(
    family: str, luck: random.Random, indent: int | None, listed: bool
) -> None:
    value: Any = json.dumps(ARGUMENTS) if luck.random() < 0.3 else ARGUMENTS
    name_key = "tool_name" if family == "command_r" else "name"
    members: list[tuple[str, Any]] = [(name_key, "my-tool"), (luck.choice(["arguments", "parameters"]), value)]
    members += luck.sample([("id", "call_1"), ("type", "function"), ("index", 0), ("x", {"name": "get_time"})], 3)
    luck.shuffle(members)
    text: Any = dict(members)
    start, end = OBJECTS[family]
    text = start + json.dumps([text] if listed else text, indent=indent) + end
    assert calls_in(family, text) == [("my-tool", ARGUMENTS)]


@pytest.mark.parametrize("family", JSON_CALLS)
@pytest.mark.parametrize("value", ['"null"', '""', "null", "{}", '" {} "', '"{}"', "{ }", "[]", "[ ]", '"[]"'])
def test_arguments_that_say_nothing_are_an_empty_object(family: str, value: str) -> None:
    assert calls_in(family, JSON_CALLS[family]("get_time", value)) == [("get_time", {})]


HEADS = {"mistral": "[TOOL_CALLS]NAME[ARGS]", "kimi_k2": "<|tool_call_begin|>NAME:0<|tool_call_argument_begin|>"} | {
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
    "hermes": '<tool_call>{"name": "NAME", "arguments": ',
    "qwen3_coder": "<tool_call>\n<function=NAME>\n",
}


@pytest.mark.parametrize("family", HEADS)
def test_a_call_that_ends_behind_its_name_is_whole_if_nothing_was_cut_off(family: str) -> None:
    text = HEADS[family].replace("NAME", "get_time")
    bare = {"type": "function", "function": {"name": "get_time"}}
    for tool, natural, expected in ((TOOLS[1], True, "{}"), (TOOLS[1], False, ""), (bare, False, "{}")):
        splitter = ToolSplitter(FORMATS[family], [tool])
        events = splitter.feed(text) + splitter.finish(natural)
        assert joined(events) == ("", [("get_time", expected)])


@pytest.mark.parametrize("text", ['{"name": "get_time"}', '{"type": "function", "function": {"name": "get_time"}}'])
def test_arguments_that_are_missing_are_an_empty_object(text: str) -> None:
    assert calls_in("hermes", f"<tool_call>{text}</tool_call>") == [("get_time", {})]


@pytest.mark.parametrize("value", ["5", "[1]", '"Rome"', "true", '"[1]"', "get_time"])
def test_arguments_that_are_no_object_are_no_call(value: str) -> None:
    text = f'<tool_call>{{"name": "get_time", "arguments": {value}}}</tool_call>'
    assert calls_in("hermes", text, text) == []


@pytest.mark.parametrize("before", ["", "<|python_tag|>", "\n", " <|python_tag|> "])
@pytest.mark.parametrize("between", [";", "\n", "; ", ", ", "", "<|python_tag|>", ";\n<|python_tag|>"])
def test_llama_calls_several_tools_in_whatever_way(before: str, between: str) -> None:
    one = '{"type": "function", "name": "get_time", "parameters": {"city": "Rome; \\"}"}}'
    two = '{"name": "my-tool", "parameters": {}}'
    expected = [("get_time", {"city": 'Rome; "}'}), ("my-tool", {}), ("get_time", {"city": 'Rome; "}'})]
    assert calls_in("llama3_json", before + between.join([one, two, one])) == expected


TYPED: list[tuple[str, str, Any]] = [
    ("city", "007", "007"),
    ("city", "12", "12"),
    ("city", "null", "null"),
    ("city", "true", "true"),
    ("city", '{"a": 1}', '{"a": 1}'),
    ("city", '"quoted"', '"quoted"'),
    ("note", "12", "12"),
    ("note", "null", None),
    ("other", "007", "007"),
    ("other", "null", None),
    ("third", "3.5", "3.5"),
    ("third", "null", None),
    ("unit", "1", "1"),
    ("unit", "null", "null"),
    ("rank", "3", 3),
    ("rank", "low", "low"),
    ("rank", "null", None),
    ("days", "12", 12),
    ("days", "3.0", 3),
    ("days", "soon", "soon"),
    ("share", "0.25", 0.25),
    ("sure", "true", True),
    ("sure", "False", False),
    ("deep", '{"a": [1, "2"]}', {"a": [1, "2"]}),
    ("deep", "{'a': True, 'b': None,}", {"a": True, "b": None}),
    ("many", "[1, 2]", [1, 2]),
    ("tree", '{"a": {}}', {"a": {}}),
    ("city", "  two  spaces \n", "  two  spaces \n"),
    ("city", "", ""),
    ("city", "a</tool_call>\n<function=b>", "a</tool_call>\n<function=b>"),
]


@pytest.mark.parametrize("family", TEXT_CALLS)
@pytest.mark.parametrize(("key", "text", "value"), TYPED)
def test_bare_text_is_what_the_schema_makes_of_it(family: str, key: str, text: str, value: Any) -> None:
    written = TEXT_CALLS[family]("mcp.search", {"days": "1", "sure": "false", key: text})
    [(name, arguments)] = calls_in(family, written)
    assert name == "mcp.search"
    assert arguments == {"days": 1, "sure": False, key: value}
    assert type(arguments[key]) is type(value)


@pytest.mark.parametrize("family", GEMMAS)
@pytest.mark.parametrize(("key", "text", "value"), [each for each in TYPED if each[1] and each[1][0] not in '"{[ a'])
def test_an_unquoted_value_is_what_the_schema_makes_of_it(family: str, key: str, text: str, value: Any) -> None:
    start, quote, end = GEMMAS[family]
    bare = None if (key, text) == ("city", "null") else value
    written = f"{start}call:mcp.search{{many:[1,{{a:{quote}}},{quote}}}],{key}:{text}}}{end}"
    assert calls_in(family, written) == [("mcp.search", {"many": [1, {"a": "},"}], key: bare})]
    written = f"{start}call:mcp.search{{{key}:{quote}{text}{quote}}}{end}"
    assert calls_in(family, written) == [("mcp.search", {key: text})]


BARE_VALUES: dict[str, Callable[[str, str], str]] = {
    "pythonic": lambda key, text: f"<|tool_call_start|>[get_time({key}={text})]<|tool_call_end|>",
    "llama_pythonic": lambda key, text: f"[get_time({key}={text}, sure=True)]",
    "gemma4": lambda key, text: f"<|tool_call>call:get_time{{{key}:{text}}}<tool_call|>",
    "function_gemma": lambda key, text: f"<start_function_call>call:get_time{{{key}:{text}}}<end_function_call>",
    "deepseek_v32": lambda key, text: (
        f'<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_time">\n<｜DSML｜parameter name="{key}" string="false">'
        f"{text}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    ),
}


@pytest.mark.parametrize("family", BARE_VALUES)
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *((key, text, None) for key in ("city", "days", "note", "third", "either", "new") for text in ("null", "None")),
        ("either", "5", 5),
        ("new", "5", 5),
        ("new", "true", True),
        ("days", "3.0", 3),
        ("rank", "3", 3),
        ("many", "null", None),
        # A number may have been meant as a string if the schema knows no numbers.
        ("city", "5", "5"),
        ("city", "True", "True"),
        ("note", "2.50", "2.50"),
        ("unit", "1", "1"),
    ],
)
def test_a_value_that_is_not_marked_as_a_string_is_none(family: str, key: str, text: str, value: Any) -> None:
    [(_, arguments)] = calls_in(family, BARE_VALUES[family](key, text))
    assert arguments[key] == value
    assert type(arguments[key]) is type(value)


@pytest.mark.parametrize("key", ["city", "note", "days", "new"])
@pytest.mark.parametrize(("text", "value"), [('"abc"', "abc"), ('"5"', "5"), ("abc", "abc"), ('"a\\n"', "a\n")])
def test_json_in_a_parameter_that_is_no_text_is_read(key: str, text: str, value: str) -> None:
    assert calls_in("deepseek_v32", BARE_VALUES["deepseek_v32"](key, text)) == [("get_time", {key: value})]


@pytest.mark.parametrize("family", ["pythonic", "llama_pythonic"])
def test_python_literals_become_json(family: str) -> None:
    search = r"""mcp.search(city='it\'s "x" \x41\u00e9 )]', many=[1, (2,), {'a': None}], sure=True, days=-3,)"""
    text = f"{FORMATS[family].start}[{search}, get_time()]{FORMATS[family].end}"
    assert calls_in(family, text) == [
        ("mcp.search", {"city": 'it\'s "x" Aé )]', "many": [1, [2], {"a": None}], "sure": True, "days": -3}),
        ("get_time", {}),
    ]


BARE = {
    "qwen3_coder": "<tool_call>\n",
    "minimax_m2": "<minimax:tool_call>\n",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "deepseek_v31": "<｜tool▁calls▁begin｜>",
    "deepseek_v32": "<｜DSML｜function_calls>\n",
}


@pytest.mark.parametrize("family", BARE)
def test_a_call_without_the_mark_around_it_is_a_call(family: str) -> None:
    text = without_arguments(family, "get_time")
    bare = text.removeprefix(BARE[family])
    assert bare != text
    assert calls_in(family, f"Well. {bare}\n{bare}", "Well.") == [("get_time", {})] * 2


PROSE = [
    "Write <tool_call> and then JSON. ",
    'A call is <tool_call>\n{"name": <name>}\n</tool_call>, that\'s all.\n',
    " <tool_call> <tool_call> \n",
    "`<function=` and <invoke name= and <|python_tag|>print(1)\n\n",
    "<tool_call>get_time is a tool\n",
    '<tool_call>{"name": 5} ',
    "<tool_call>\nget_time\nthis\n</tool_call>\n",
    "[TOOL_CALLS] and [ARGS]\n",
]


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("text", PROSE)
def test_text_about_calls_comes_out_as_it_is_and_without_delay(family: str, text: str) -> None:
    assert calls_in(family, text, text) == []
    parser = ChatFormat(tools=FORMATS[family]).parser(Beginning.FRESH, TOOLS)
    events = [event for character in text + "and so on" for event in parser.feed(character, ())]
    assert joined(events)[0] == text + "and so on"


JUNK = st.lists(
    st.sampled_from(
        "<tool_call> </tool_call> <function= <function=get_time> <parameter=city> </parameter> </function> get_time "
        '<arg_key> city </arg_key> <arg_value> </arg_value> <|tool_call> call:get_time{ <|"|> <tool_call|> } { [ ] ( ) '
        '"name": "get_time" "undeclared" "arguments": "parameters": , : ; \\ " \' = null 12 [TOOL_CALLS] [ARGS] '
        "<TOOLCALL> </TOOLCALL> <|python_tag|> get_time( undeclared( city= <|tool_call_start|> <|tool_call_end|> "
        '<minimax:tool_call> <invoke name="get_time"> <parameter name="city"> </invoke> </minimax:tool_call>'.split(" ")
    )
    | st.sampled_from(
        ["\n<parameter=days>", "</function>\n</tool_call>", "<arg_key>days</arg_key>", "'''", "r'", "a, b"]
    )
    | st.sampled_from([" ", "\n", "ä", "\\u00e9", "<tool", '{"name": "get_time", "arguments": {'])
    | st.text(max_size=3),
    max_size=14,
).map("".join)


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=40)
@given(text=JUNK, own=st.booleans(), luck=st.randoms(use_true_random=False))
def test_any_text_reads_the_same_from_any_cut(family: str, text: str, own: bool, luck: random.Random) -> None:
    if own:
        text = FORMATS[family].start + text + FORMATS[family].end
    content, calls = content_and_calls(family, [text])
    assert content_and_calls(family, cut(text, luck)) == (content, calls)
    assert all(name in NAMES for name, _ in calls)
    if not calls:
        assert content == text


@pytest.mark.parametrize("family", FORMATS)
def test_a_call_cut_short_is_reported_with_what_there_is(family: str) -> None:
    call = without_arguments(family, "get_time")
    if family in TEXT_CALLS:
        call = TEXT_CALLS[family]("get_time", {"city": "Ro\nme", "days": "12"})
    elif family in JSON_CALLS:
        call = JSON_CALLS[family]("get_time", '{"city": "Ro\\nme", "days": 12}')
    [(_, whole)] = content_and_calls(family, [call])[1]
    named = False
    for size in range(len(call)):
        content, calls = content_and_calls(family, list(call[:size]))
        assert calls or content == call[:size]
        assert not (named and not calls)
        named = bool(calls)
        for name, arguments in calls:
            assert name == "get_time"
            assert whole.startswith(arguments)
            assert content == ""
    assert named


def test_what_models_get_wrong_costs_neither_the_call_nor_the_text() -> None:
    call = '<tool_call>{"name": "get_time", "arguments": {"city": "a"}'
    for end in ("</tool_call>", "}</tool_call>", "}}</tool_call>", "}\n", "}]</tool_call>"):
        assert calls_in("hermes", call + end) == [("get_time", {"city": "a"})]
    loose = "<tool_call>{'name': 'get_time', 'arguments': {'city': 'it\\'s\n', 'sure': True,}}</tool_call>"
    assert calls_in("hermes", loose) == [("get_time", {"city": "it's\n", "sure": True})]
    broken = '<tool_call>{"name": "get_time", "arguments": {"days": soon}}</tool_call>'
    assert content_and_calls("hermes", list(broken)) == ("soon}}</tool_call>", [("get_time", '{"days":')])
    junk = "<function=get_time>\n<parameter=city>\na</parameter>b\n</parameter>\njunk</function>\n</tool_call>"
    assert calls_in("qwen3_coder", junk, "\njunk") == [("get_time", {"city": "a</parameter>b"})]


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("text", [" Hello", "\n{foo", " [bar", "\nget_time", " <", " call", "```"])
def test_text_behind_a_call_is_not_lost_at_the_end(family: str, text: str) -> None:
    content, calls = content_and_calls(family, list(without_arguments(family, "my-tool") + text))
    assert calls == [("my-tool", "{}")]
    assert content == text or (text.strip() in "<```" and not content)


def test_arguments_in_a_string_are_told_as_far_as_they_came() -> None:
    text = '<tool_call>{"name": "get_time", "arguments": "{\\"city\\": \\"Ro'
    assert content_and_calls("hermes", [text]) == ("", [("get_time", '{"city": "Ro')])


@pytest.mark.parametrize("family", TEXT_CALLS)
def test_long_text_is_told_while_it_comes(family: str) -> None:
    parser = ChatFormat(tools=FORMATS[family]).parser(Beginning.FRESH, TOOLS)
    text = TEXT_CALLS[family]("get_time", {"city": "word " * 50})
    seen = [parser.feed(character, ()) for character in text]
    assert sum(isinstance(event, CallArguments) for events in seen for event in events) > 100


def test_a_call_is_complete_as_soon_as_its_arguments_are() -> None:
    for family in FORMATS:
        splitter = ToolSplitter(FORMATS[family], TOOLS)
        call = without_arguments(family, "get_time")
        begun = [bool(splitter.feed(character)) and splitter.between_calls for character in call]
        assert any(begun)
        assert splitter.between_calls
