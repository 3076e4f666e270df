"""A model whose template knows no tools is told of them, and sees every call and result, in text."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_templates import call, function, published, source, tokenizer_with, wrapper_with
from support.parsing import read, summary
from support.servers import demo_target

from parallm_openai.text.reasoning.splitter import Beginning
from parallm_openai.text.templates import TemplateError
from parallm_openai.text.tokenizer import Tokenizer

OWN = ["chatml", "without_tools", "strict", "functionary"]
PUBLISHED = ("microsoft-Phi-3.5-mini-instruct", "google-gemma-2-2b-it", "HuggingFaceTB-SmolLM3-3B")
EACH = [*OWN, *map(published, PUBLISHED)]
WEATHER = function(
    "get_weather",
    description="The weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
TIMER = function("set_timer", parameters={"type": "object", "properties": {"minutes": {"type": "integer"}}})
RULES = {"role": "system", "content": "RULES"}
QUESTION = {"role": "user", "content": "QUESTION"}


def called(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def block(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize("name", EACH)
def test_tools_are_described_once_at_the_start_with_the_instructions_and_the_form_of_a_call(name: str) -> None:
    tokenizer = tokenizer_with(source(name))
    assert tokenizer.chat_format.generic_tools
    prompt = tokenizer.render([RULES, QUESTION], tools=[WEATHER, TIMER])
    listed = [json.loads(line) for line in prompt.splitlines() if line.startswith('{"type": "function"')]
    assert [tool["function"]["name"] for tool in listed] == ["get_weather", "set_timer"]
    assert listed[0]["function"]["parameters"] == WEATHER["function"]["parameters"]
    assert prompt.index("RULES") < prompt.index("get_weather") < prompt.index("QUESTION")
    assert prompt.count("<tools>\n") == prompt.count("QUESTION") == prompt.count("RULES") == 1
    # Nothing is described if nothing may be called.
    assert "tool" not in tokenizer.render([RULES, QUESTION])


@pytest.mark.parametrize("name", EACH)
def test_instructions_are_made_if_a_conversation_has_none(name: str) -> None:
    prompt = tokenizer_with(source(name)).render([QUESTION], tools=[WEATHER])
    assert prompt.index("get_weather") < prompt.index("QUESTION")


@pytest.mark.parametrize("name", EACH)
def test_calls_and_results_are_text_in_their_order(name: str) -> None:
    tokenizer = tokenizer_with(source(name))
    calls = [call("a", "get_weather", '{"city":  "Rome"}'), call("b", "set_timer", '{"minutes": 3, "x": "ü')]
    messages = [QUESTION, called(*calls, content="I LOOK"), result("b", "RINGS"), result("a", "RAINS")]
    for tools in ([WEATHER, TIMER], None):
        prompt = tokenizer.render([*messages, {"role": "user", "content": "NEXT"}], tools=tools)
        first, second = block("get_weather", '{"city":  "Rome"}'), block("set_timer", '{"minutes": 3, "x": "ü"}')
        assert f"I LOOK\n{first}\n{second}" in prompt
        answers = "<tool_response>\nRAINS\n</tool_response>\n<tool_response>\nRINGS\n</tool_response>"
        assert f"{answers}\n\nNEXT" in prompt
        assert prompt.index(answers) > prompt.index(second)


@pytest.mark.parametrize("name", EACH)
def test_a_turn_begins_with_the_prompt_and_the_answer_of_the_turn_before(name: str) -> None:
    tokenizer = tokenizer_with(source(name))
    first = tokenizer.render([RULES, QUESTION], tools=[WEATHER])
    written = "I look.\n" + block("get_weather", '{"city":"Rome"}')
    content, _, calls = summary(read(tokenizer.chat_format.parser(Beginning.FRESH, [WEATHER]), [written]))
    assert (content, calls) == ("I look.", [("get_weather", {"city": "Rome"})])
    messages = [RULES, QUESTION, called(call("a", "get_weather", '{"city":"Rome"}'), content=content)]
    second = tokenizer.render([*messages, result("a", "RAINS")], tools=[WEATHER])
    assert second.startswith(first + written)
    third = tokenizer.render([*messages, result("a", "RAINS"), said("It rains."), QUESTION], tools=[WEATHER])
    assert third.startswith(second + "It rains.")


def said(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_a_template_that_refuses_system_messages_gets_them_as_the_beginning_of_the_question() -> None:
    tokenizer = tokenizer_with(source("strict"))
    prompt = tokenizer.render([RULES, QUESTION], tools=[WEATHER])
    assert prompt.startswith("<start_of_turn>user\nRULES\n\n# Tools")
    assert prompt.endswith("\n\nQUESTION<end_of_turn>\n<start_of_turn>model\n")
    assert tokenizer.render([RULES, QUESTION]).startswith("<start_of_turn>user\nRULES\n\nQUESTION<end_of_turn>")


def test_templates_with_a_known_form_keep_it() -> None:
    for name, mark in (("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]"), ("llama3_json", '"parameters"')):
        tokenizer = tokenizer_with(source(name))
        assert not tokenizer.chat_format.generic_tools
        assert mark in tokenizer.render([QUESTION, called(call("a", "get_weather", "{}")), result("a", "R")])
    # A user who names a format is believed.
    assert not tokenizer_with(source("chatml"), "mistral").chat_format.generic_tools


def test_without_a_template_there_are_no_tools() -> None:
    tokenizer = Tokenizer(wrapper_with(None), demo_target().vocab_size)
    assert not tokenizer.chat_format.calls_tools
    assert "no chat template" in tokenizer.chat_format.why_no_tools


def test_a_strict_server_has_no_generic_form() -> None:
    tokenizer = Tokenizer(wrapper_with(source("strict")), demo_target().vocab_size, generic_tools=False)
    assert not tokenizer.chat_format.calls_tools
    assert "--strict" in tokenizer.chat_format.why_no_tools
    with pytest.raises(TemplateError, match="System messages are not supported"):
        tokenizer.render([RULES, QUESTION])


TURNS = st.lists(
    st.one_of(
        st.sampled_from(["user", "system", "assistant"]).map(lambda role: [role]),
        st.tuples(st.integers(1, 3), st.permutations(range(3)), st.booleans()).map(lambda drawn: ["calls", *drawn]),
        st.just(["orphan"]),
    ),
    min_size=1,
    max_size=8,
)


def conversation(turns: list[list[Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """A conversation of such turns, and what is said in it: no two things are the same."""
    messages: list[dict[str, Any]] = []
    words: list[str] = []

    def word() -> str:
        words.append(f"WORD{len(words)}.")
        return words[-1]

    for kind, *drawn in turns:
        if kind == "calls":
            count, order, talks = drawn
            calls = [call(f"c{len(messages)}_{i}", "get_weather", json.dumps({"city": word()})) for i in range(count)]
            messages.append(called(*calls, content=word() if talks else None))
            messages += [result(calls[place]["id"], word()) for place in order if place < count]
        elif kind == "orphan":
            messages.append(result("nobody", word()))
        else:
            messages.append({"role": kind, "content": word()})
    return messages, words


@settings(max_examples=100)
@given(turns=TURNS, tools=st.sampled_from([None, [WEATHER]]))
def test_no_message_call_or_result_is_ever_lost(turns: list[list[Any]], tools: Any) -> None:
    messages, words = conversation(turns)
    before = copy.deepcopy(messages)
    for tokenizer in LENIENT:
        prompt = tokenizer.render(messages, tools=tools)
        assert [prompt.count(word) for word in words] == [1] * len(words)
        assert prompt.count("<tool_response>\n") == sum(message["role"] == "tool" for message in messages)
    assert messages == before


# A template that refuses system messages and takes any other order.
NO_SYSTEM = source("strict").replace('(message.role == "user") != (loop.index0 % 2 == 0)', 'message.role == "system"')
LENIENT = [*(tokenizer_with(source(name)) for name in ("chatml", "without_tools")), tokenizer_with(NO_SYSTEM)]


def test_of_these_templates_one_takes_system_messages_nowhere() -> None:
    assert [tokenizer.template.traits(True).system for tokenizer in LENIENT] == [True, True, False]
