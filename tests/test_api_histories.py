"""What other clients and servers keep of a conversation is taken back as they wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.servers import RunningServer

from parallm_openai.api.sse import json_chunk

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


def rendered(server: RunningServer, *messages: dict[str, Any], **body: Any) -> str:
    sent = {"model": "parallm-demo", "messages": [QUESTION, *messages], **body}
    with server.client as client:
        answer = client.post("/v1/chat/completions/render", json=sent)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt"])


def calling(**call: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", **call}]}


ARGUMENTS: dict[str, dict[str, Any]] = {
    "none": {"arguments": None},
    "left out": {},
    "empty": {"arguments": ""},
    "the object itself": {"arguments": {}},
    "as OpenAI": {"arguments": "{}"},
}


@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("ids", [{"id": "call_1"}, {"id": None}, {}])
def test_calls_without_arguments_or_ids_are_read(server: RunningServer, kind: str, ids: dict[str, Any]) -> None:
    answered = {"role": "tool", "tool_call_id": "call_1", "content": "It rains."}
    expected = rendered(server, calling(id="call_1", function={"name": "get_weather", "arguments": "{}"}), answered)
    call = calling(function={"name": "get_weather", **ARGUMENTS[kind]}, **ids)
    assert rendered(server, call, answered) == expected


def test_arguments_that_are_an_object_are_what_their_text_is(server: RunningServer) -> None:
    as_text, as_object = (
        rendered(server, calling(id="a", function={"name": "get_weather", "arguments": arguments}))
        for arguments in ('{"city": "Paris"}', {"city": "Paris"})
    )
    assert as_text == as_object


def test_a_tool_that_has_nothing_to_say_is_heard(server: RunningServer) -> None:
    call = calling(id="a", function={"name": "get_weather", "arguments": "{}"})
    assert rendered(server, call, {"role": "tool", "tool_call_id": "a", "content": None})


@pytest.mark.parametrize("thoughts", ["I think.", [{"type": "text", "text": "I "}, {"type": "text", "text": "think."}]])
@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
def test_thoughts_among_the_parts_are_no_content(server: RunningServer, kind: str, thoughts: Any) -> None:
    parts = [{"type": kind, kind: thoughts}, {"type": "text", "text": "It rains."}]
    plain = rendered(server, {"role": "assistant", "content": "It rains.", "reasoning_content": "I think."}, QUESTION)
    assert rendered(server, {"role": "assistant", "content": parts}, QUESTION) == plain


@pytest.mark.parametrize("grammar", [{"guided_regex": "[0-9]+"}, {"guided_json": {"type": "integer"}}])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_call_stands_above_any_grammar(server: RunningServer, grammar: Any, choice: Any) -> None:
    sent = {"model": "parallm-demo", "messages": [QUESTION], "tools": [WEATHER], "tool_choice": choice, **grammar}
    with server.client as client:
        answer = client.post("/v1/chat/completions", json=sent | {"temperature": 0, "max_tokens": 100})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_an_answer_beside_tools_follows_guided_json_as_it_would_a_format(server: RunningServer) -> None:
    sent = {
        "model": "parallm-demo",
        "messages": [{"role": "user", "content": "Count."}],
        "tools": [WEATHER],
        "guided_json": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        "temperature": 0,
        "max_tokens": 60,
    }
    with server.client as client:
        message = client.post("/v1/chat/completions", json=sent).json()["choices"][0]["message"]
    assert not message.get("tool_calls")
    assert set(json.loads(message["content"])) == {"n"}


def test_no_client_can_take_text_for_the_end_of_a_line() -> None:
    text = "a\u0085b\u2028c\u2029d\u00e9"
    data = json_chunk({"text": text})["data"]
    assert len(data.splitlines()) == 1
    assert json.loads(data) == {"text": text}
    assert "\u00e9" in data
