"""`/v1/responses` says the same as chat completions, in items and numbered events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from support.responses import BEYOND_THE_SDK, WEATHER, client, create
from support.sdk_types import assert_exact
from support.servers import RunningServer

from parallm_openai.settings import ServerSettings


def chat(server: RunningServer, messages: Any, **options: Any) -> Any:
    return client(server).chat.completions.create(
        model=server.model.name, messages=messages, temperature=0, max_tokens=100, **options
    )


def test_an_answer_is_that_of_chat_completions(server: RunningServer) -> None:
    question = "What is the capital of France?"
    response = create(server, question, instructions="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    answer = chat(server, messages)
    assert response.output_text == answer.choices[0].message.content
    assert response.status == "completed"
    assert response.usage.input_tokens == answer.usage.prompt_tokens
    assert response.usage.output_tokens == answer.usage.completion_tokens
    assert response.instructions == "Be brief."


def test_the_body_is_the_sdks_own_type_without_missing_fields(server: RunningServer) -> None:
    with server.client as http:
        body = http.post("/v1/responses", json={"model": server.model.name, "input": "Hello!"}).json()
    assert set(body) >= BEYOND_THE_SDK
    assert_exact(Response, {field: value for field, value in body.items() if field not in BEYOND_THE_SDK})
    assert (type(body["created_at"]), type(body["completed_at"])) == (int, int)
    assert body["text"] == {"format": {"type": "text"}}


def test_the_events_of_a_stream_are_numbered_typed_and_tell_the_whole_response(server: RunningServer) -> None:
    body = {"model": server.model.name, "input": "Hello!", "stream": True, "temperature": 0}
    names, events = [], []
    with server.client as http, http.stream("POST", "/v1/responses", json=body) as lines:
        for line in lines.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    assert [event["type"] for event in events] == names
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event)
    kinds = list(dict.fromkeys(names))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    final = events[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == text
    assert text == create(server, "Hello!").output_text


def test_the_sdks_stream_helper_gives_the_final_response(server: RunningServer) -> None:
    with client(server).responses.stream(model=server.model.name, input="Hello!", temperature=0) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == deltas


def test_functions_are_called_and_answered(server: RunningServer) -> None:
    first = create(server, "What is the weather in Paris?", tools=[WEATHER])
    [call] = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'}
    second = create(server, [result], tools=[WEATHER], previous_response_id=first.id)
    assert second.status == "completed"
    by_hand = create(
        server,
        [{"role": "user", "content": "What is the weather in Paris?"}, call.model_dump(exclude_none=True), result],
        tools=[WEATHER],
    )
    assert second.output_text == by_hand.output_text != ""


def test_streamed_calls_tell_their_arguments_in_pieces(server: RunningServer) -> None:
    events = list(create(server, "What is the weather in Paris?", tools=[WEATHER], stream=True))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(pieces) == done.arguments
    assert json.loads(done.arguments) == {"city": "Paris"}
    assert events[-1].response.output[0].status == "completed"


def test_a_conversation_goes_on_from_a_stored_response_and_not_from_another(server: RunningServer) -> None:
    first = create(server, "My name is Anna.")
    second = create(server, "What is my name?", previous_response_id=first.id)
    whole = chat(
        server,
        [
            {"role": "user", "content": "My name is Anna."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "What is my name?"},
        ],
    )
    assert second.output_text == whole.choices[0].message.content
    sdk = client(server)
    assert sdk.responses.retrieve(first.id).output_text == first.output_text
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, "Hm?", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    unstored = create(server, "Hello!", store=False)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(unstored.id)


def test_only_the_last_responses_are_kept(start_server: Callable[..., RunningServer]) -> None:
    small = start_server(settings=ServerSettings(stored_responses=2, graceful_timeout=1))
    made = [create(small, "Hello!", max_output_tokens=1).id for _ in range(3)]
    sdk = client(small)
    for kept in made[1:]:
        assert sdk.responses.retrieve(kept).id == kept
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made[0])


def test_an_answer_cut_short_is_incomplete(server: RunningServer) -> None:
    response = create(server, "Tell me a story.", max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    assert list(create(server, "Tell me a story.", max_output_tokens=3, stream=True))[-1].type == "response.incomplete"


def test_text_in_a_schema_parses_into_the_sdks_model(server: RunningServer) -> None:
    class Point(BaseModel):
        x: int
        y: int

    response = client(server).responses.parse(
        model=server.model.name, input="Hello!", text_format=Point, max_output_tokens=200, temperature=0
    )
    assert response.status == "completed"
    assert isinstance(response.output_parsed, Point)


def test_thoughts_are_an_item_of_their_own(server: RunningServer) -> None:
    response = create(server, "What is 123 + 345?", reasoning={"effort": "low"}, max_output_tokens=300)
    kinds = [item.type for item in response.output]
    assert kinds[0] == "reasoning"
    assert response.output[0].content[0].text
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_logprobs_come_with_the_text(server: RunningServer) -> None:
    response = create(server, "Hello!", top_logprobs=2)
    entries = response.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries) == response.output_text
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    # Text that might have become a stop string is held back for a while, and its log-probabilities with it.
    stepwise = {"stop": [response.output_text[:-1] + "\x00"], "use_speculative": False}
    held = create(server, "Hello!", top_logprobs=2, extra_body=stepwise)
    assert held.output_text == response.output_text
    assert [entry.token for entry in held.output[0].content[0].logprobs] == [entry.token for entry in entries]


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize("field", ["instructions", "user", "metadata", "tools", "input"])
def test_half_a_character_is_no_text(server: RunningServer, field: str) -> None:
    half = "\ud83d"
    bodies: dict[str, Any] = {
        "instructions": half,
        "user": half,
        "metadata": {half: half},
        "tools": [{**WEATHER, "description": half}],
        "input": [{"role": "user", "content": f"Hi {half}"}],
    }
    body = {"model": server.model.name, "input": "Hi", "max_output_tokens": 3, field: bodies[field]}
    with server.client as http:
        answer = http.post("/v1/responses", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": []}, "input"),
        ({"background": True}, "background"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        ({"input": [{"id": "x"}]}, "input[0].id"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": "x"}, {"role": "nobody", "content": "x"}]}, "input[1].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": 1}]}, "input[0].arguments"),
        ({"input": [1]}, "input[0]"),
        ({"input": 1}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input"),
        ({"input": [{"role": "user", "content": "x", "note": float("nan")}]}, "input"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"x": float("inf")}}]}, "tools"),
        ({"metadata": nested(300)}, "metadata"),
        ({"metadata": nested(900)}, "metadata"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
            "tool_choice.tools[0].type",
        ),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 1}]}, "tools[0].parameters"),
        ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"stream_options": {}}, "stream_options"),
        ({"conversation": "c"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(server: RunningServer, options: dict[str, Any], param: str) -> None:
    with server.client as http:
        # Python's own writer lets NaN pass, as its reader does.
        content = json.dumps({"model": server.model.name, "input": "Hi", **options})
        answer = http.post("/v1/responses", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


PAIR: Any = {"type": "namespace", "name": "mcp__skies", "description": "The sky", "tools": [WEATHER]}
JOINED: Any = {**WEATHER, "name": "mcp__skies__get_weather"}


def test_a_function_of_a_namespace_is_called_by_both_names(server: RunningServer) -> None:
    """Codex sends the tools of MCP servers so."""
    choice = {"type": "function", "name": JOINED["name"]}
    answer = create(server, "What is the weather in Paris?", tools=[WEATHER, PAIR], tool_choice=choice)
    [call] = answer.output
    assert (call.namespace, call.name) == ("mcp__skies", "get_weather")
    assert list(json.loads(call.arguments)) == ["city"]
    assert [tool.type for tool in answer.tools] == ["function", "namespace"]
    assert answer.tools[1].tools[0].name == "get_weather"
    events = list(create(server, "Hello!", tools=[PAIR], tool_choice="required", stream=True))
    [added] = [event.item for event in events if event.type == "response.output_item.added"]
    assert (added.namespace, added.name) == ("mcp__skies", "get_weather")
    plain = create(server, "Hello!", tools=[WEATHER], tool_choice="required")
    assert plain.output[0].namespace is None


def test_the_model_sees_a_namespace_in_the_names(server: RunningServer) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"}
    counted = []
    for names, tool in (({"namespace": "mcp__skies"}, PAIR), ({"name": JOINED["name"]}, JOINED)):
        said: list[Any] = [{"role": "user", "content": "Hi"}, {**call, **names}]
        counted.append(client(server).responses.input_tokens.count(input=said, tools=[tool]).input_tokens)
    assert counted[0] == counted[1]


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([PAIR, JOINED], "tools"),
        ([{**PAIR, "tools": [{**WEATHER, "parameters": {"type": "string"}}]}], "tools[0].tools[0].parameters"),
        ([WEATHER, {**PAIR, "tools": [{**WEATHER, "name": "no name"}]}], "tools[1].tools[0].name"),
        ([{**PAIR, "name": 5}], "tools[0].name"),
        ([{**PAIR, "tools": [{**WEATHER, "name": f"f{number}"} for number in range(1025)]}], "tools[0].tools"),
        (
            [
                {**PAIR, "name": f"n{place}", "tools": [{**WEATHER, "name": f"f{number}"} for number in range(600)]}
                for place in range(2)
            ],
            "tools",
        ),
    ],
)
def test_errors_name_the_function_of_a_namespace(server: RunningServer, tools: list[Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, "Hi", tools=tools)
    assert caught.value.param == param
