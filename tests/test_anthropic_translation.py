"""A request to `/v1/messages` says to the model what the same request to `/v1/chat/completions` says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parallm_openai.api.anthropic.schemas import MessagesRequest
from parallm_openai.api.anthropic.translation import message_description, message_names
from parallm_openai.api.errors import ApiError
from parallm_openai.api.leniency import Ignored
from parallm_openai.text.answer import as_object
from parallm_openai.text.description import ChatDescription, ToolChoice

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
HELLO = [{"role": "user", "content": "Hello"}]


def translated(*, reasons: bool = True, strict: bool = False, **body: Any) -> tuple[ChatDescription, str]:
    """The description, and the names of what is ignored."""
    request = MessagesRequest.model_validate({"max_tokens": 10, "messages": HELLO, **body})
    ignored = Ignored(strict=strict)
    request.check(ignored)
    return message_description(request, "owner", ignored, reasons=reasons), ignored.header()


def messages(*said: Any, **body: Any) -> list[Any]:
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": content} for place, content in enumerate(said)]
    return list(translated(messages=turns, **body)[0].messages)


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}, **CACHED}
CALLED = {"id": "toolu_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("Be brief.", "Be brief."),
        ([text("Be brief.", **CACHED)], "Be brief."),
        ([text("Be brief."), text("Be kind.", **CACHED)], "Be brief.\nBe kind."),
        ([text("x-anthropic-billing-header: cc_version=2; cch=1f;"), text("Be brief.")], "Be brief."),
    ],
)
def test_instructions_are_the_first_message(system: Any, said: str) -> None:
    assert messages("Hello", system=system) == [
        {"role": "system", "content": said},
        {"role": "user", "content": "Hello"},
    ]


def test_no_instructions_make_no_message() -> None:
    empty: list[Any] = ["", [], None]
    for system in empty:
        assert messages("Hello", system=system) == HELLO


def test_what_changes_with_each_request_of_claude_code_does_not_reach_the_prompt() -> None:
    blocks = [[text(f"x-anthropic-billing-header: cch={n};"), text("You help.")] for n in range(2)]
    assert messages("Hello", system=blocks[0]) == messages("Hello", system=blocks[1])


def test_a_turn_with_thoughts_text_and_a_call_is_one_message_and_its_result_the_next() -> None:
    thought = {"type": "thinking", "thinking": "Rome, then.", "signature": "x"}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("It "), text("rains.", **CACHED)]}
    assert messages("Weather?", [thought, text("I look."), CALL], [text("Go on."), result]) == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Rome, then.", "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "It \nrains."},
        {"role": "user", "content": "Go on."},
    ]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"content": "It rains."}, "It rains."),
        ({}, ""),
        ({"content": []}, ""),
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({"content": [text("no such city")], "is_error": True}, "Error: no such city"),
        ({"content": "It rains.", "is_error": False}, "It rains."),
    ],
)
def test_results_of_calls_say_whether_they_are_errors(result: dict[str, Any], said: str) -> None:
    block = {"type": "tool_result", "tool_use_id": "toolu_1", **result}
    assert messages("Weather?", [CALL], [block])[-1]["content"] == said


def test_calls_that_another_server_carried_out_are_calls_with_their_results() -> None:
    use = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "Rome"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"title": "Rome"}]}
    said = messages("Search.", [use, found, text("Found.")], "Thanks.")
    assert [each["role"] for each in said] == ["user", "assistant", "tool", "assistant", "user"]
    assert said[2]["content"] == '[{"title": "Rome"}]'


def test_a_plain_text_document_is_text() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    assert messages([document, text("Sum up.")]) == [{"role": "user", "content": "T\n\nD\nSum up."}]


def test_thoughts_that_nobody_here_can_read_are_ignored_by_name() -> None:
    turns = [*HELLO, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, text("Hi")]}]
    description, ignored = translated(messages=turns)
    assert description.messages[1] == {"role": "assistant", "content": "Hi"}
    assert ignored == "messages[1].content[0]"


def test_tools_are_functions_and_those_of_anthropics_servers_are_ignored_by_name() -> None:
    description, ignored = translated(tools=[SEARCH, {**TOOL, **CACHED, "type": "custom", "input_examples": []}])
    function = {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}
    assert description.tools == [{"type": "function", "function": function}]
    assert ignored == "tools[0]"
    with pytest.raises(ApiError, match=r"tools\[0\]\.type"):
        translated(tools=[SEARCH], strict=True)


def test_errors_name_tools_by_their_place_in_the_request() -> None:
    body = MessagesRequest.model_validate({"max_tokens": 1, "messages": HELLO, "tools": [SEARCH, TOOL, SEARCH, TOOL]})
    names = message_names(body)
    assert names("tools[1].function.parameters") == "tools[3].input_schema"
    assert names("tools[0].function.name") == "tools[1].name"


@pytest.mark.parametrize(
    ("choice", "described", "parallel"),
    [
        (None, ToolChoice(), True),
        ({"type": "auto"}, ToolChoice("auto"), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice("auto"), False),
        ({"type": "any"}, ToolChoice("required"), True),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
        ({"type": "tool", "name": "get_weather"}, ToolChoice("named", ("get_weather",)), True),
        ({"type": "none"}, ToolChoice("none"), True),
    ],
)
def test_the_choice_of_tools(choice: Any, described: ToolChoice, parallel: bool) -> None:
    description, _ = translated(tools=[TOOL], tool_choice=choice)
    assert (description.tool_choice, description.parallel_tool_calls) == (described, parallel)


THINK = {"type": "enabled", "budget_tokens": 2048}


@pytest.mark.parametrize(
    ("body", "effort", "budget", "variables"),
    [
        ({}, "none", None, {}),
        ({"thinking": {"type": "disabled"}}, "none", None, {}),
        ({"output_config": {"effort": "low"}}, "none", None, {}),
        ({"thinking": THINK}, None, 2048, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}}, None, None, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, "high", None, {}),
    ],
)
def test_thinking(body: dict[str, Any], effort: str | None, budget: int | None, variables: dict[str, Any]) -> None:
    description, ignored = translated(**body)
    assert (description.reasoning_effort, description.thinking_budget) == (effort, budget)
    assert description.chat_template_kwargs == variables
    assert not ignored


def test_a_model_that_does_not_reason_answers_without_thoughts_unless_strict() -> None:
    description, ignored = translated(thinking=THINK, reasons=False)
    assert (description.reasoning_effort, description.thinking_budget) == (None, None)
    assert ignored == "thinking"
    with pytest.raises(ApiError, match="does not reason"):
        translated(thinking=THINK, reasons=False, strict=True)


@pytest.mark.parametrize("older", [True, False])
def test_a_format_binds_the_answer(older: bool) -> None:
    format = {"type": "json_schema", "schema": SCHEMA}
    description, _ = translated(**({"output_format": format} if older else {"output_config": {"format": format}}))
    [made] = description.formats
    assert (made.kind, made.value) == ("json_schema", SCHEMA)


def test_sampling_and_stop_sequences() -> None:
    description, _ = translated(temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["END", ""])
    sampling = description.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.9, 7, 10)
    assert description.stops == ("END",)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{**CALL, "type": "tool_result", "tool_use_id": "x"}]}]},
            "[0]",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            "messages[0].content[0].source",
        ),
    ],
)
def test_what_the_model_cannot_be_told_is_refused_by_its_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError) as found:
        translated(**body)
    assert found.value.status == 400
    assert words in found.value.message


@pytest.mark.parametrize(
    ("arguments", "object"),
    [
        ('{"city": "Rome"}', {"city": "Rome"}),
        ("", {}),
        ('{"city": "Ro', {"city": "Ro"}),
        ('{"city": "Rome", "da', {"city": "Rome"}),
        ("[1]", {}),
        ("null", {}),
        ("no JSON", {}),
    ],
)
def test_arguments_are_an_object_also_if_they_were_cut_off(arguments: str, object: dict[str, Any]) -> None:
    assert as_object(arguments) == object


LATE = {"name": "set_timer", "description": "Zählt", "input_schema": SCHEMA, "strict": True, "defer_loading": True}
FOUND = {"type": "tool_reference", "tool_name": "set_timer"}


def searched(*found: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(found)}
    return [*HELLO, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]


def test_a_deferred_tool_waits_until_a_result_refers_to_it() -> None:
    waiting, _ = translated(messages=searched(text("nothing")), tools=[TOOL, LATE])
    assert [tool["function"]["name"] for tool in waiting.tools] == ["get_weather"]
    loaded, ignored = translated(messages=searched(text("This one:"), FOUND), tools=[TOOL, LATE])
    assert [tool["function"]["name"] for tool in loaded.tools] == ["get_weather", "set_timer"]
    assert loaded.described == {"set_timer"}
    words, definition = str(loaded.messages[-1]["content"]).split("\n")
    assert words == "This one:"
    assert "Zählt" in definition
    function = loaded.tools[1]["function"]
    assert function["strict"]
    assert json.loads(definition)["function"] == {key: function[key] for key in function if key != "strict"}
    assert ignored == ""


def test_a_tool_that_many_results_refer_to_is_defined_once() -> None:
    twice = [*searched(FOUND, FOUND), *searched(FOUND)]
    messages = translated(messages=twice, tools=[TOOL, LATE])[0].messages
    first, second = [str(each["content"]).split("\n") for each in messages if each["role"] == "tool"]
    assert ["Zählt" in line for line in first] == [True, False]
    assert [first[1], *second] == ["set_timer", "set_timer"]


def test_a_search_that_the_server_cannot_run_defers_nothing() -> None:
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    description, ignored = translated(tools=[search, TOOL, LATE])
    assert [tool["function"]["name"] for tool in description.tools] == ["get_weather", "set_timer"]
    assert description.described == frozenset()
    assert ignored == "tools[0]"


def test_a_reference_stands_in_results_only() -> None:
    with pytest.raises(ApiError, match="cannot stand there"):
        translated(messages=[{"role": "user", "content": [FOUND]}], tools=[LATE])
    assert "unknown" in str(messages_with({"type": "tool_reference", "tool_name": "unknown"})[-1]["content"])


def messages_with(*found: dict[str, Any]) -> list[Any]:
    return list(translated(messages=searched(*found), tools=[TOOL])[0].messages)
