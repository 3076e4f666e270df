"""Tools over the API: free, required, named, strict, in pieces, old style; and thoughts beside the answer."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from support.chat_requests import TIMER, WEATHER
from support.servers import RunningServer


def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(server: RunningServer, question: str, **options: Any) -> Any:
    defaults: dict[str, Any] = {"temperature": 0, "max_tokens": 120}
    return client(server).chat.completions.create(
        model=server.model.name, messages=[{"role": "user", "content": question}], **(defaults | options)
    )


def calls_of(answer: Any) -> list[tuple[str, Any]]:
    calls = answer.choices[0].message.tool_calls or []
    assert all(isinstance(call, ChatCompletionMessageFunctionToolCall) for call in calls)
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_a_model_that_may_call_calls_when_it_helps_and_talks_when_it_does_not(server: RunningServer) -> None:
    called = ask(server, "What is the weather in Paris?", tools=[WEATHER])
    assert calls_of(called) == [("get_weather", {"city": "Paris"})]
    assert called.choices[0].finish_reason == "tool_calls"
    assert called.choices[0].message.content is None
    talked = ask(server, "Hello!", tools=[WEATHER])
    assert not talked.choices[0].message.tool_calls
    assert talked.choices[0].finish_reason == "stop"
    assert talked.choices[0].message.content


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 4}, {"extra_body": {"use_speculative": False}}])
def test_a_required_call_is_made_whatever_the_question(server: RunningServer, options: dict[str, Any]) -> None:
    answer = ask(server, "Hello!", tools=[TIMER, WEATHER], tool_choice="required", **options)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls
    assert {name for name, _ in calls_of(answer)} <= {"get_weather", "set_timer"}


def test_a_named_tool_is_the_one_that_is_called_once(server: RunningServer) -> None:
    choice: Any = {"type": "function", "function": {"name": "set_timer"}}
    answer = ask(server, "What is the weather in Paris?", tools=[WEATHER, TIMER], tool_choice=choice)
    [(name, arguments)] = calls_of(answer)
    assert name == "set_timer"
    assert 1 <= arguments["minutes"] <= 99


def test_strict_tools_get_arguments_of_their_schema_even_from_a_hot_model(server: RunningServer) -> None:
    called = 0
    for seed in range(12):
        answer = ask(server, "Set a timer for 5 minutes.", tools=[TIMER], temperature=1.8, seed=seed)
        if answer.choices[0].finish_reason == "tool_calls":
            for name, arguments in calls_of(answer):
                called += 1
                assert name == "set_timer"
                assert set(arguments) == {"minutes"}
                assert 1 <= arguments["minutes"] <= 99
    assert called >= 6


def test_one_call_at_a_time_where_parallel_calls_are_off(server: RunningServer) -> None:
    answer = ask(server, "What is the weather in Rome and Paris?", tools=[WEATHER], parallel_tool_calls=False)
    assert len(calls_of(answer)) == 1
    assert answer.choices[0].finish_reason == "tool_calls"


def test_streamed_arguments_come_in_pieces_and_never_as_text(server: RunningServer) -> None:
    options: Any = {"tools": [WEATHER], "stream": True, "extra_body": {"use_speculative": False}}
    chunks = list(ask(server, "What is the weather in Paris?", **options))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert not any(delta.content for delta in deltas)
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    assert pieces[0].id
    assert pieces[0].function.name == "get_weather"
    assert all(piece.id is None and piece.function.name is None for piece in pieces[1:])
    assert len(pieces) > 2
    whole = ask(server, "What is the weather in Paris?", tools=[WEATHER])
    assert json.loads("".join(piece.function.arguments for piece in pieces)) == calls_of(whole)[0][1]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_tool_loop_ends_in_an_answer_with_the_result(server: RunningServer) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    with client(server) as sdk:
        first = sdk.chat.completions.create(
            model=server.model.name, messages=messages, tools=[WEATHER], temperature=0, max_tokens=120
        )
        call = first.choices[0].message.tool_calls[0]  # type: ignore[index]
        messages += [
            first.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"temperature": 21})},
        ]
        second = sdk.chat.completions.create(
            model=server.model.name, messages=messages, tools=[WEATHER], temperature=0, max_tokens=120
        )
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


def test_functions_are_answered_in_their_own_old_form(server: RunningServer) -> None:
    answer = ask(server, "What is the weather in Paris?", functions=[WEATHER["function"]])
    assert answer.choices[0].finish_reason == "function_call"
    assert answer.choices[0].message.function_call.name == "get_weather"
    assert json.loads(answer.choices[0].message.function_call.arguments) == {"city": "Paris"}
    named = ask(server, "Hi", functions=[WEATHER["function"]], function_call={"name": "get_weather"})
    assert named.choices[0].message.function_call.name == "get_weather"


def test_tool_choice_none_shows_the_model_no_tools(server: RunningServer) -> None:
    without = ask(server, "What is the weather in Paris?")
    with_none = ask(server, "What is the weather in Paris?", tools=[WEATHER], tool_choice="none")
    assert with_none.choices[0].message.content == without.choices[0].message.content


def test_a_format_beside_tools_binds_what_is_not_a_call(server: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    format: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    reasons = Counter[str]()
    for seed in range(8):
        answer = ask(
            server, "How are you?", tools=[WEATHER], response_format=format, temperature=1.0, seed=seed, max_tokens=200
        )
        choice = answer.choices[0]
        reasons[choice.finish_reason] += 1
        if choice.finish_reason == "stop":
            assert set(json.loads(choice.message.content)) == {"n"}
        elif choice.finish_reason == "tool_calls":
            assert calls_of(answer)
    assert {"stop", "tool_calls"} <= set(reasons)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "functions": [WEATHER["function"]]}, "functions"),
        ({"tools": [WEATHER], "extra_body": {"guided_regex": "a"}}, "tools"),
    ],
)
def test_tools_that_make_no_sense_are_refused_by_name(
    server: RunningServer, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, "Hi", **options)
    assert caught.value.param == param


def test_thoughts_come_beside_the_answer_and_are_counted(server: RunningServer) -> None:
    answer = ask(server, "What is 123 + 345?", reasoning_effort="low")
    message = answer.choices[0].message
    assert message.reasoning_content
    assert "<think>" not in message.content + message.reasoning_content
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    plain = ask(server, "What is 2 + 3?", reasoning_effort="none")
    assert not hasattr(plain.choices[0].message, "reasoning_content")
    assert plain.usage.completion_tokens_details.reasoning_tokens == 0


def test_streamed_thoughts_are_those_of_the_whole_answer(server: RunningServer) -> None:
    whole = ask(server, "What is 123 + 345?", reasoning_effort="low").choices[0].message
    chunks = ask(server, "What is 123 + 345?", reasoning_effort="low", stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == whole.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == whole.content


def test_a_budget_ends_the_thoughts(server: RunningServer) -> None:
    answer = ask(server, "What is 123 + 345?", reasoning_effort="low", extra_body={"thinking_budget": 10})
    assert 10 <= answer.usage.completion_tokens_details.reasoning_tokens <= 12


def test_a_stream_has_no_text_before_a_call(server: RunningServer) -> None:
    """Clients show a text that is there, even an empty one."""
    body = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "temperature": 0}
    firsts = {}
    for tools in ([WEATHER], None):
        with (
            server.client as client,
            client.stream("POST", "/v1/chat/completions", json=body | {"tools": tools, "stream": True}) as lines,
        ):
            data = [json.loads(line[6:]) for line in lines.iter_lines() if line.startswith("data: {")]
        deltas = [choice["delta"] for chunk in data for choice in chunk["choices"]]
        firsts[bool(tools)] = deltas[0]["content"]
        assert any("tool_calls" in delta for delta in deltas) == bool(tools)
        assert all(delta.get("content") is None for delta in deltas) == bool(tools)
    assert firsts == {True: None, False: ""}
