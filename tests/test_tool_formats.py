"""Every family's calls are read from what its own chat template writes, however the text is cut."""

from __future__ import annotations

import random

import pytest
from support.chat_templates import OWN, published, source
from support.parsing import cut, read, summary
from support.tool_calls import TOOL, written_call

from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.events import CallArguments, CallStart
from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.tools.families import FORMATS, detect

PUBLISHED: dict[str, str | None] = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command_r",
    "GLM-4.6": "glm47",
    "GLM-4.7-Flash": "glm47",
    "HuggingFaceTB-SmolLM3-3B": None,
    "Kimi-K2-Thinking": "kimi_k2",
    "MiniMax-M2": "minimax_m2",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen3_coder",
    "Qwen3.5-4B": "qwen3_coder",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek_v3",
    "deepseek-ai-DeepSeek-V3.1": "deepseek_v31",
    "deepseek-ai-DeepSeek-V3.2": "deepseek_v32",
    "google-gemma-2-2b-it": None,
    "google-gemma-4-31B-it": "gemma4",
    "ibm-granite-granite-4.0": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3_json",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3_json",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3_json",
    "microsoft-Phi-3.5-mini-instruct": None,
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
}
ARGUMENTS = {"city": 'Köln "am" Rhein', "days": 3}
# The tests' own templates are named after the format that they show, but for these.
OTHERS: dict[str, str | None] = {"granite": "hermes", "thinking": "hermes"} | dict.fromkeys(
    ("chatml", "functionary", "harmony", "strict", "without_tools")
)
OWN_FAMILIES: dict[str, str | None] = {**{name: name for name in FORMATS}, **OTHERS}
FAMILIES = OWN_FAMILIES | PUBLISHED
# It appends to a list, which transformers' sandbox forbids; an example of its output stands below.
UNRENDERED = {"Kimi-K2-Thinking"}


def test_every_format_has_a_template_of_the_tests_own() -> None:
    assert set(OWN) == set(OWN_FAMILIES)


@pytest.mark.parametrize("name", [*OWN_FAMILIES, *map(published, PUBLISHED)])
def test_the_family_is_known_by_its_chat_template(name: str) -> None:
    found = detect(source(name), {})
    assert (found.name if found is not None else None) == FAMILIES[name]


@pytest.mark.parametrize(
    "name",
    [
        *(name for name, family in OWN_FAMILIES.items() if family),
        *(published(name) for name, family in PUBLISHED.items() if family and name not in UNRENDERED),
    ],
)
def test_a_call_as_the_template_writes_it_is_read_whole_from_any_cut(name: str) -> None:
    format = FORMATS[str(FAMILIES[name])]
    text = written_call(source(name), format.name, "get_weather", ARGUMENTS)
    rng = random.Random(name)
    for _ in range(20):
        parser = ChatFormat(tools=format).parser(Beginning.FRESH, [TOOL])
        content, _, calls = summary(read(parser, cut(text, rng)))
        assert calls == [("get_weather", ARGUMENTS)]
        assert "get_weather" not in content
        assert format.start not in content or not format.start


OUTPUTS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "deep": {"a": "}"}}}\n</tool_call>',
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Rome", "deep": {"a": "}"}}}',
    "llama_pythonic": '[get_weather(city="Rome", deep={"a": "}"})]',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome", "deep": {"a": "}"}}}]',
    "pythonic": '<|tool_call_start|>[get_weather(city="Rome", deep={"a": "}"})]<|tool_call_end|>',
    "nemotron": '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Rome", "deep": {"a": "}"}}}]</TOOLCALL>',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Rome", "deep": {"a": "}"}}<|tool_call_end|><|tool_calls_section_end|>',
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    '{"city": "Rome", "deep": {"a": "}"}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}


@pytest.mark.parametrize("family", OUTPUTS)
def test_calls_are_read_from_any_cut(family: str) -> None:
    rng = random.Random(family)
    for _ in range(40):
        parser = ChatFormat(tools=FORMATS[family]).parser(Beginning.FRESH, [TOOL])
        content, _, calls = summary(read(parser, cut(OUTPUTS[family], rng)))
        assert calls == [("get_weather", {"city": "Rome", "deep": {"a": "}"}})]
        assert content == ""


def test_text_around_calls_is_content_and_the_space_between_them_is_not() -> None:
    text = "I will look.\n" + OUTPUTS["hermes"] + "\n" + OUTPUTS["hermes"] + "\n"
    for seed in range(30):
        parser = ChatFormat(tools=FORMATS["hermes"]).parser(Beginning.FRESH, [TOOL])
        content, _, calls = summary(read(parser, cut(text, random.Random(seed))))
        assert content == "I will look."
        assert len(calls) == 2


def test_arguments_come_in_pieces_while_the_model_writes_them() -> None:
    parser = ChatFormat(tools=FORMATS["hermes"]).parser(Beginning.FRESH, [TOOL])
    seen = [parser.feed(character, ()) for character in OUTPUTS["hermes"]]
    pieces = [event for events in seen for event in events if isinstance(event, CallArguments)]
    assert len(pieces) > 20
    assert isinstance(next(event for events in seen for event in events), CallStart)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", "<tool_call>\nnot a call\n</tool_call> and more"),
        ("hermes", "a < b, <tool and <tool_cal"),
        ("llama3_json", '{"name": "somebody", "parameters": {}}'),
        ("llama3_json", '{"answer": 42}'),
        ("llama_pythonic", "[1, 2, 3]"),
        ("mistral", "[TOOL"),
        ("qwen3_coder", "<tool_call>\n<function"),
    ],
)
def test_what_is_no_call_after_all_is_text_and_none_of_it_is_lost(family: str, text: str) -> None:
    for seed in range(20):
        parser = ChatFormat(tools=FORMATS[family]).parser(Beginning.FRESH, [TOOL])
        content, _, calls = summary(read(parser, cut(text, random.Random(seed))))
        assert (content, calls) == (text, [])


def test_a_call_cut_short_keeps_what_there_is_of_its_arguments() -> None:
    parser = ChatFormat(tools=FORMATS["hermes"]).parser(Beginning.FRESH, [TOOL])
    events = read(parser, ['<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ro'])
    assert "".join(e.text for e in events if isinstance(e, CallArguments)) == '{"city": "Ro'


def test_arguments_that_are_json_in_a_string_are_unpacked() -> None:
    parser = ChatFormat(tools=FORMATS["hermes"]).parser(Beginning.FRESH, [TOOL])
    text = '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>'
    assert summary(read(parser, list(text)))[2] == [("get_weather", {"city": "Rome"})]
