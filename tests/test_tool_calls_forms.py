"""Forms that a family's models write besides the one that its template shows."""

from __future__ import annotations

import json

import pytest
from support.tool_calls import calls_in

ROME, OSLO = '{"city": "Rome"}', '{"city": "Oslo"}'
V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
KIMI = "<|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
OBJECT = '{{"name": "{}", "arguments": {}}}'
# The families that know the form, what begins it, a call, what stands between calls, and what ends it.
FORMS = {
    "JSON in LFM2's marks": (["pythonic"], "<|tool_call_start|>[", OBJECT, ", ", "]<|tool_call_end|>"),
    "JSON in LFM2's marks, no list": (["pythonic"], "<|tool_call_start|>", OBJECT, "\n", "<|tool_call_end|>"),
    "Mistral's names without a mark": (["mistral"], "[TOOL_CALLS]", "{}{}", "[TOOL_CALLS]", ""),
    "Mistral's names, one mark": (["mistral"], "[TOOL_CALLS]", "{} {}", "\n", ""),
    "Llama 4's JSON": (["llama3_json"], "<|python_start|>", OBJECT, "; ", "<|python_end|>"),
    "Llama 4's list": (["llama3_json"], "<|python_start|>[", OBJECT, ", ", "]<|python_end|>"),
    "Kimi's other marks": (["kimi_k2"], "<|tool_call_section_begin|>", KIMI, "", "<|tool_call_section_end|>"),
    "V3": (["deepseek_v3", "deepseek_v31"], "<｜tool▁calls▁begin｜>", V3, "\n", "<｜tool▁calls▁end｜>"),
    "V3.1": (["deepseek_v3", "deepseek_v31"], "<｜tool▁calls▁begin｜>", V31, "", "<｜tool▁calls▁end｜>"),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_by_every_family_that_knows_it(form: str) -> None:
    families, start, call, between, end = FORMS[form]
    calls = call.format("get_time", ROME) + between + call.format("my-tool", OSLO)
    expected = [("get_time", json.loads(ROME)), ("my-tool", json.loads(OSLO))]
    for family in families:
        assert calls_in(family, start + calls + end) == expected
        assert calls_in(family, start + call.format("get_time", "{}") + end) == [("get_time", {})]
        assert calls_in(family, f"Well. {start}{calls}{end}", "Well.") == expected
        other = start + call.format("undeclared", ROME) + end
        assert calls_in(family, other, other) == []


@pytest.mark.parametrize("family", ["llama3_json", "llama_pythonic"])
@pytest.mark.parametrize(("start", "end"), [("", ""), ("<|python_start|>", "<|python_end|>"), ("<|python_tag|>", "")])
def test_llamas_write_pythons_calls_in_marks_of_two_kinds(family: str, start: str, end: str) -> None:
    calls = "[get_time(city='Rome'), my-tool(days=1)]"
    assert calls_in(family, start + calls + end) == [("get_time", {"city": "Rome"}), ("my-tool", {"days": 1})]
    other = f"{start}[undeclared(days=1)]{end}"
    assert calls_in(family, other, other) == []


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v31"])
@pytest.mark.parametrize("call", [V3, V31])
def test_deepseek_leaves_out_the_first_mark_of_a_call(family: str, call: str) -> None:
    first, second = (call.format(name, ROME) for name in ("get_time", "my-tool"))
    text = f"<｜tool▁calls▁begin｜>{first.removeprefix('<｜tool▁call▁begin｜>')}\n{second}<｜tool▁calls▁end｜>"
    assert [name for name, _ in calls_in(family, text)] == ["get_time", "my-tool"]
