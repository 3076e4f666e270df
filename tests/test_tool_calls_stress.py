"""Tool calls under stress: huge and nested texts, and whatever real templates write of nasty arguments."""

from __future__ import annotations

import gc
import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_templates import published, source
from support.parsing import cut
from support.tool_calls import JSON_CALLS, NAMES, TEXT_CALLS, TOOLS, content_and_calls, joined, written_call

from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.tools.families import FORMATS

HUGE = ["[", "{", "(", "<tool_call>", '<tool_call>{"', '{"name":"get_time","arguments":{"a":[', '<tool_call>{"a":', " "]
HUGE += [
    "[get_time(city=",
    "<tool_call>get_time\n<arg_key>a</arg_key><arg_value>",
    "<function=get_time>\n<parameter=city>",
]
HUGE += [
    "<function=get_time>\n<parameter=city>\nx\n</function>\n",
    "<function=get_time>\n<parameter=city>\nx</function><tool_call>",
    "</function></tool_call>",
    "<tool_call>get_time<arg_key>city</arg_key><arg_value>x</tool_call>",
    "<tool_call>get_time<arg_key>city</arg_key><arg_value>x<arg_key>days",
    "[get_time(city='a' 'b' (",
    "<|tool_call>call:get_time{city:a, b",
    "get_time<arg_key>city</arg_key><arg_value></tool_call>\n<tool_call>",
    '\'\'\' """ r" ',
    ", abc",
]
HUGE += ["</parameter>", '<tool_call>{"arguments": "', "<|tool_call>call:get_time{a:", "[TOOL_CALLS]get_time[ARGS]{"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["hermes", "llama3_json", "pythonic", "glm47", "qwen3_coder", "gemma4", "mistral"])
def test_time_grows_with_the_text_and_not_faster(family: str) -> None:
    for piece in HUGE:
        for size in (4, 10**6):
            short = _seconds(family, piece, 1_250, size)
            # 16 times the text; looking at all of it again and again would take 256 times as long. A single
            # measurement may be disturbed, not all of them.
            assert any(_seconds(family, piece, 20_000, size) < 100 * max(short, 0.005) for _ in range(5))


def _seconds(family: str, piece: str, length: int, size: int) -> float:
    """Processor time of this thread alone: the suite leaves servers running, and a heap that is slow to collect."""
    text = FORMATS[family].start + piece * (length // len(piece))
    gc.disable()
    try:
        began = time.thread_time()
        content_and_calls(family, [text[at : at + size] for at in range(0, len(text), size)])
        return time.thread_time() - began
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("start", ['{"arguments": {"a": "', '{"x": ["', '{"x": 1, "y": "', '{"x": [1, ['])
def test_what_has_no_name_is_held_back_only_so_long(start: str) -> None:
    parser = ChatFormat(tools=FORMATS["hermes"]).parser(Beginning.FRESH, TOOLS)
    pieces = [f"<tool_call>{start}", *["1, " * 1000] * 400]
    seen = [event for piece in pieces for event in parser.feed(piece, ())]
    assert joined(seen) == ("".join(pieces).rstrip(), [])


def test_deep_nesting_is_no_trouble() -> None:
    for family in FORMATS:
        for inside in ("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
            if family in TEXT_CALLS:
                [(_, arguments)] = content_and_calls(
                    family, [TEXT_CALLS[family]("get_time", {"deep": inside, "many": inside})]
                )[1]
                assert json.loads(arguments) == {"deep": inside, "many": inside}
            elif family in JSON_CALLS:
                content_and_calls(
                    family,
                    [JSON_CALLS[family]("get_time", inside), JSON_CALLS[family]("get_time", f'{{"a": {inside}}}')],
                )


# Templates and what they can carry: those with bare text tell no string from what its text means.
PUBLISHED = {
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "ibm-granite-granite-4.0": "hermes",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3_json",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command_r",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek_v3",
    "deepseek-ai-DeepSeek-V3.1": "deepseek_v31",
    "deepseek-ai-DeepSeek-V3.2": "deepseek_v32",
    "google-gemma-4-31B-it": "gemma4",
    "GLM-4.6": "glm47",
    "GLM-4.7-Flash": "glm47",
    "MiniMax-M2": "minimax_m2",
    "Qwen3-Coder": "qwen3_coder",
    "Qwen3.5-4B": "qwen3_coder",
}
RENDERED = {name: name for name in FORMATS} | {"granite": "hermes", "thinking": "hermes"} | PUBLISHED
nasty = st.lists(
    st.sampled_from(
        ["</tool_call>", "<tool_call>", '"', "'", "\\", "{", "}", "[", "]", " ", "\n", "null", "12", "é", "日"]
    )
    | st.sampled_from(["<function=x>", "</function>", "```", "<|python_tag|>", ", ", ":", "<arg_key>", "\t", "&", "😀"])
    | st.text(max_size=3).filter(str.isprintable),
    max_size=6,
).map("".join)
anything: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | nasty
    | st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b c", "name", "é"]), inner, max_size=3)
    ),
    max_leaves=6,
)
VALUES: dict[str, Any] = {
    "city": nasty,
    "days": st.integers(),
    "share": st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
    "sure": st.booleans(),
    "deep": st.dictionaries(st.sampled_from(["a", "b", "name"]), anything, max_size=3),
    "many": st.lists(anything, max_size=3),
    "note": st.none() | nasty.filter(lambda text: text.strip() not in ("null", "None")),
    "third": st.none() | nasty.filter(lambda text: text.strip() not in ("null", "None")),
    "unit": st.sampled_from(["1", "2", "null"]),
    "rank": st.sampled_from(["low", 3, None]),
}
given_arguments = st.fixed_dictionaries({}, optional=VALUES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [published(name) if name in PUBLISHED else name for name in RENDERED])
@settings(max_examples=40)
@given(arguments=given_arguments, tool=st.sampled_from(NAMES), luck=st.randoms(use_true_random=False))
def test_what_a_template_writes_is_read_back_equal(
    name: str, arguments: dict[str, Any], tool: str, luck: random.Random
) -> None:
    family = RENDERED[name]
    text = written_call(source(name), family, tool, arguments)
    if family not in JSON_CALLS and any(mark in json.dumps(arguments) for mark in ("</function>", "<arg_key>")):
        # Bare text that holds the very mark that may follow a value can be told only mostly.
        arguments = json.loads(json.dumps(arguments).replace("</function>", "").replace("<arg_key>", ""))
        text = written_call(source(name), family, tool, arguments)
    [(called, written)] = content_and_calls(family, cut(text, luck))[1]
    assert called == tool
    assert json.loads(written) == arguments
