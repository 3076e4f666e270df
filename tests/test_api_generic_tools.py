"""Over HTTP: a model whose template knows no tools calls them on every surface; a strict server refuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import openai
import pytest
from support.chat_requests import TIMER, WEATHER
from support.chat_templates import source, wrapper_with
from support.servers import RunningServer, demo_target, running_server

from parallm_openai import LLM, SamplingParams
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import ServerSettings

FUNCTIONS = {"get_weather", "set_timer"}
QUESTION = "What is the weather in Paris?"
GREEDY = {"temperature": 0, "max_tokens": 120}


def without_tools(name: str = "chatml") -> LoadedModel:
    return replace(demo_target(), tokenizer=wrapper_with(source(name)))


@pytest.fixture(scope="module", params=["chatml", "strict"])
def generic(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with running_server(model=without_tools(request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def talkative() -> Iterator[RunningServer]:
    """The demo knows the form of these calls, and the template's marks of turns are its own."""
    with running_server(model=without_tools("chatml")) as running:
        yield running


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    with server.client as client:
        return client.post(path, json={"model": server.model.name, **body})


def sdk(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def input_schema(tool: dict[str, Any]) -> dict[str, Any]:
    return {"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]}


def test_a_required_call_is_made_in_chat_and_answered(generic: RunningServer) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    asked: dict[str, Any] = {"model": generic.model.name, "tools": [WEATHER, TIMER], **GREEDY}
    answer = sdk(generic).chat.completions.create(messages=messages, tool_choice="required", **asked)
    message: Any = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert {made.function.name for made in message.tool_calls} <= FUNCTIONS
    messages.append(message.model_dump(exclude_none=True))
    messages += [{"role": "tool", "tool_call_id": made.id, "content": "21"} for made in message.tool_calls]
    first, second = (
        post(generic, "/v1/chat/completions/render", messages=sent, tools=[WEATHER, TIMER]).json()["prompt"]
        for sent in (messages[:2], messages)
    )
    assert second.startswith(first)
    assert second.count("<tool_response>\n21\n</tool_response>") == len(message.tool_calls)
    assert sdk(generic).chat.completions.create(messages=messages, **asked).choices[0].finish_reason


def test_a_streamed_call_says_the_same_as_a_whole_one(generic: RunningServer) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    asked: dict[str, Any] = {"tools": [WEATHER, TIMER], "tool_choice": choice, **GREEDY}
    messages: Any = [{"role": "user", "content": QUESTION}]
    whole = sdk(generic).chat.completions.create(model=generic.model.name, messages=messages, **asked)
    [made] = whole.choices[0].message.tool_calls or []
    stream = sdk(generic).chat.completions.create(model=generic.model.name, messages=messages, stream=True, **asked)
    pieces: list[Any] = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(piece.function.name or "" for piece in pieces) == "get_weather"
    streamed = "".join(piece.function.arguments or "" for piece in pieces)
    assert streamed == getattr(made, "function").arguments  # noqa: B009
    assert set(json.loads(streamed)) == {"city"}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_required_call_is_made_in_responses(generic: RunningServer, streamed: bool) -> None:
    tool: Any = {"type": "function", "strict": True, **WEATHER["function"]}
    asked: dict[str, Any] = {"model": generic.model.name, "input": QUESTION, "tools": [tool], "temperature": 0}
    asked |= {"tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 120}
    if streamed:
        with sdk(generic).responses.stream(**asked) as events:
            response: Any = events.get_final_response()
    else:
        response = sdk(generic).responses.create(**asked)
    [made] = response.output
    assert (made.type, made.name) == ("function_call", "get_weather")
    history = [{"role": "user", "content": QUESTION}, made.model_dump(exclude_none=True)]
    history.append({"type": "function_call_output", "call_id": made.call_id, "output": "21"})
    assert post(generic, "/v1/responses", input=history, tools=[tool], max_output_tokens=16).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_a_required_call_is_made_in_messages(generic: RunningServer, streamed: bool) -> None:
    client = anthropic.Anthropic(base_url=generic.url, api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": generic.model.name, "max_tokens": 120, "system": "Be brief."}
    asked |= {"tools": [input_schema(WEATHER), input_schema(TIMER)], "extra_body": {"temperature": 0}}
    asked["tool_choice"] = {"type": "tool", "name": "set_timer"}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    if streamed:
        with client.messages.stream(messages=messages, **asked) as events:
            message: Any = events.get_final_message()
    else:
        message = client.messages.create(messages=messages, **asked)
    [made] = message.content
    assert (message.stop_reason, made.type, made.name) == ("tool_use", "tool_use", "set_timer")
    result = {"type": "tool_result", "tool_use_id": made.id, "content": "It rings."}
    messages += [{"role": "assistant", "content": [made.model_dump()]}]
    messages += [{"role": "user", "content": [result, {"type": "text", "text": "And now?"}]}]
    assert client.messages.create(messages=messages, **asked).stop_reason == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_the_models_own_accord_are_read(talkative: RunningServer, stream: bool) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    tool = {"type": "function", **WEATHER["function"]}
    answers = [
        post(talkative, "/v1/chat/completions", messages=messages, tools=[WEATHER], stream=stream, **GREEDY),
        post(talkative, "/v1/responses", input=QUESTION, tools=[tool], stream=stream, temperature=0),
        post(talkative, "/v1/messages", messages=messages, tools=[input_schema(WEATHER)], stream=stream, **GREEDY),
        post(talkative, "/api/chat", messages=messages, tools=[WEATHER], stream=stream, options={"temperature": 0}),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert "get_weather" in answer.text
        assert stream or "Paris" in answer.text
        # Read as a call, and no part of it is content.
        assert "tool_call>" not in answer.text


def test_an_own_call_is_answered_with_its_result_and_its_prompt_is_found_again(talkative: RunningServer) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    asked: dict[str, Any] = {"tools": [WEATHER], **GREEDY}
    message = post(talkative, "/v1/chat/completions", messages=messages, **asked).json()["choices"][0]["message"]
    [made] = message["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"city": "Paris"}
    messages += [message, {"role": "tool", "tool_call_id": made["id"], "content": '{"temperature": 21}'}]
    answer = post(talkative, "/v1/chat/completions", messages=messages, **asked).json()
    assert "21" in answer["choices"][0]["message"]["content"]


def test_tools_are_among_the_capabilities(talkative: RunningServer) -> None:
    assert "tools" in post(talkative, "/api/show").json()["capabilities"]


def test_without_a_choice_nothing_is_described(generic: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "tools": [WEATHER]}
    prompts = [
        post(generic, "/v1/chat/completions/render", **body, tool_choice=choice).json()["prompt"]
        for choice in ("none", "auto", "required")
    ]
    assert "get_weather" not in prompts[0]
    assert prompts[1] == prompts[2]
    assert "get_weather" in prompts[1]


def test_a_strict_server_refuses_and_shows_no_such_capability(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(model=without_tools(), settings=ServerSettings(strict=True, graceful_timeout=2))
    messages = [{"role": "user", "content": QUESTION}]
    tool = {"type": "function", **WEATHER["function"]}
    refused = [
        post(server, "/v1/chat/completions", messages=messages, tools=[WEATHER], max_tokens=4),
        post(server, "/v1/responses", input=QUESTION, tools=[tool], max_output_tokens=16),
        post(server, "/v1/messages", messages=messages, tools=[input_schema(WEATHER)], max_tokens=4),
    ]
    for response in refused:
        assert response.status_code == 400
        assert "no way to call tools, and with --strict" in response.json()["error"]["message"]
    body = {"messages": messages, "tools": [WEATHER], "tool_choice": "none", "max_tokens": 4}
    assert post(server, "/v1/chat/completions", **body).status_code == 200
    assert "tools" not in post(server, "/api/show").json()["capabilities"]


def test_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="parallm_openai")
    with LLM(without_tools()) as llm:
        question = [{"role": "user", "content": QUESTION}]
        greedy = SamplingParams(temperature=0, max_tokens=60)
        llm.chat([question], greedy)
        assert "<tool_call>" not in caplog.text
        for _ in range(2):
            [answer] = llm.chat([question], greedy, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
            assert [made.name for made in answer.tool_calls] == ["get_weather"]
    assert caplog.text.count("<tool_call>") == 1
