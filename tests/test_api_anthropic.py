"""`/v1/messages` over HTTP: streamed or whole, the answer is the same; errors have Anthropic's shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.messages import WEATHER, asked, events_of, put_together, whole
from support.servers import RunningServer, demo_target

from parallm_openai.api.anthropic.schemas import MessagesRequest
from parallm_openai.api.anthropic.translation import message_description
from parallm_openai.api.leniency import Ignored
from parallm_openai.settings import ServerSettings

TIMER = {
    "name": "set_timer",
    "input_schema": {"type": "object", "properties": {"minutes": {"type": "integer", "maximum": 99}}},
    "strict": True,
}
THINK = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
SUM = "What is 123 + 345?"
CASES: dict[str, dict[str, Any]] = {
    "text": asked("Hello!"),
    "a call": asked("What is the weather in Paris?", tools=[WEATHER]),
    "two calls": asked("What is the weather in Rome and Paris?", tools=[WEATHER]),
    "a required call": asked("Hello!", tools=[WEATHER], tool_choice={"type": "any"}),
    "a named call": asked("Hello!", tools=[WEATHER, TIMER], tool_choice={"type": "tool", "name": "set_timer"}),
    "thoughts": asked(SUM, **THINK),
    "few thoughts": asked(SUM, thinking={"type": "enabled", "budget_tokens": 3}),
    "thoughts left out": asked(SUM, thinking={"type": "adaptive", "display": "omitted"}),
    "cut short": asked("Tell me a story.", max_tokens=3),
    "cut short in a call": asked("What is the weather in Paris?", tools=[WEATHER], max_tokens=12),
    "cut short in thoughts": asked(SUM, **THINK, max_tokens=3),
    "a stop sequence": asked("What is the capital of France?", stop_sequences=["zebra", "France"]),
    "a format": asked(
        "Hello!",
        output_config={"format": {"type": "json_schema", "schema": {"type": "object", "maxProperties": 0}}},
    ),
    "an answer begun": asked(
        "", messages=[*asked("Hello!")["messages"], {"role": "assistant", "content": "Hello! How"}]
    ),
}
REASONS = {
    "text": "end_turn",
    "a call": "tool_use",
    "cut short": "max_tokens",
    "cut short in a call": "max_tokens",
    "thoughts": "end_turn",
    "a stop sequence": "stop_sequence",
}


@pytest.mark.parametrize("case", CASES)
def test_the_events_put_together_are_the_answer_as_a_whole(server: RunningServer, case: str) -> None:
    message = whole(server, CASES[case])
    told = put_together(events_of(server, CASES[case]))
    for each in (message, told):
        # The two are different answers, of which the second may find the prompt cached.
        each["id"] = ""
        each["usage"]["input_tokens"] += each["usage"].pop("cache_read_input_tokens")
        for block in each["content"]:
            block["id"] = ""
    if case != "cut short in a call":
        assert told == message
    assert message["stop_reason"] == REASONS.get(case, message["stop_reason"])


@pytest.mark.slow
def test_the_cases_show_every_kind_of_block(server: RunningServer) -> None:
    kinds = {case: [block["type"] for block in whole(server, body)["content"]] for case, body in CASES.items()}
    assert kinds["text"] == ["text"]
    assert kinds["a call"] == ["tool_use"]
    assert kinds["two calls"] == ["tool_use", "tool_use"]
    assert kinds["thoughts"] == ["thinking", "text"]


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=st.sampled_from(["Hello!", "What is the weather in Paris?", SUM, "Tell me a story."]),
    options=st.fixed_dictionaries(
        {"max_tokens": st.sampled_from([1, 9, 60])},
        optional={
            "tools": st.just([WEATHER, TIMER]),
            "thinking": st.sampled_from([THINK["thinking"], {"type": "adaptive"}]),
            "stop_sequences": st.sampled_from([["."], ["e", " the"]]),
        },
    ),
)
def test_any_request_streams_the_text_that_it_gets_as_a_whole(
    server: RunningServer, question: str, options: dict[str, Any]
) -> None:
    body = asked(question, **options)
    message = whole(server, body)
    pieces: dict[tuple[int, str], str] = {}
    for event in events_of(server, body):
        if event["type"] == "content_block_delta":
            [text] = [value for name, value in event["delta"].items() if name != "type"]
            place = event["index"], event["delta"]["type"]
            pieces[place] = pieces.get(place, "") + text
    for index, block in enumerate(message["content"]):
        match block["type"]:
            case "text":
                assert pieces[index, "text_delta"] == block["text"]
            case "thinking":
                assert pieces[index, "thinking_delta"] == block["thinking"]
            case "tool_use" if message["stop_reason"] == "tool_use":
                assert json.loads(pieces[index, "input_json_delta"]) == block["input"]
    assert len({index for index, _ in pieces}) <= len(message["content"])


def test_a_stop_sequence_is_named(server: RunningServer) -> None:
    answer = whole(server, CASES["a stop sequence"])
    assert answer["stop_sequence"] == "France"
    assert answer["content"][0]["text"] == "The capital of "


def test_the_answer_is_that_of_chat(server: RunningServer) -> None:
    body = asked("What is the capital of France?", system="Be brief.")
    with server.client as client:
        chat = {"messages": [{"role": "system", "content": "Be brief."}, *body["messages"]], "temperature": 0}
        chat["model"] = server.model.name
        answer = client.post("/v1/chat/completions", json=chat).json()
    assert whole(server, body)["content"] == [{"type": "text", "text": answer["choices"][0]["message"]["content"]}]


@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_thoughts_come_back_whether_they_are_shown_or_not(server: RunningServer, display: str) -> None:
    plain, _ = whole(server, asked(SUM, thinking={"type": "adaptive"}))["content"]
    answer = whole(server, asked(SUM, thinking={"type": "adaptive", "display": display}))
    assert bool(answer["content"][0]["thinking"]) == (display == "summarized")
    turns = [{"role": "user", "content": SUM}, {"role": "assistant", "content": answer["content"]}]
    request = MessagesRequest.model_validate({"max_tokens": 1, "messages": turns})
    description = message_description(request, "", Ignored(strict=True), reasons=True)
    assert description.messages[1]["reasoning_content"] == plain["thinking"]


def count(server: RunningServer, body: dict[str, Any]) -> int:
    with server.client as client:
        answer = client.post("/v1/messages/count_tokens", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["input_tokens"])


def test_the_tokens_counted_are_those_that_an_answer_reads(server: RunningServer) -> None:
    for case, body in CASES.items():
        fields: dict[str, Any] = {
            name: body[name] for name in ("messages", "tools", "tool_choice", "thinking") if name in body
        }
        usage = whole(server, body)["usage"]
        assert count(server, fields) == usage["input_tokens"] + usage["cache_read_input_tokens"], case


def test_usage_says_what_was_cached(server: RunningServer) -> None:
    body = asked("Hello! " * 200, max_tokens=1)
    first, second = (whole(server, body)["usage"] for _ in range(2))
    assert second["cache_read_input_tokens"] >= 128
    total = [usage["input_tokens"] + usage["cache_read_input_tokens"] for usage in (first, second)]
    assert total[0] == total[1]


def test_an_answer_longer_than_the_context_is_cut_to_it(start_server: Callable[..., RunningServer]) -> None:
    limit = 300
    server = start_server(model=replace(demo_target(), context_length=limit))
    format = {"type": "json_schema", "schema": {"type": "string", "minLength": 500}}
    few = 20 + count(server, {"messages": asked("word")["messages"]})
    words = "word" + " word" * (limit - few)
    answer = whole(server, asked(words, max_tokens=limit, output_config={"format": format}))
    assert answer["stop_reason"] == "model_context_window_exceeded"
    usage = answer["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["output_tokens"] == limit


# What a coding agent sends with each request, beyond what Anthropic's reference has.
AGENT = asked(
    "What is the capital of France?",
    system=[
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cch=ab;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Use tools.", "cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}},
    ],
    tools=[{**WEATHER, "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}],
    metadata={"user_id": "user_0_account__session_1"},
    temperature=1,
    max_tokens=32000,
    thinking={"type": "adaptive"},
    context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    output_config={"effort": "medium"},
)


def test_a_coding_agents_request_is_answered(server: RunningServer) -> None:
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
    }
    with server.client as client:
        answer = client.post("/v1/messages?beta=true", json=AGENT, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-parallm-ignored"] == "context_management"


def error(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["request_id"] == response.headers["request-id"]
    return str(body["error"]["message"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"temperature": 3}, "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "text only"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools[0].input_schema"),
    ],
)
def test_a_bad_request_names_the_field_in_anthropics_shape(
    server: RunningServer, change: dict[str, Any], words: str
) -> None:
    with server.client as client:
        for stream in (False, True):
            answer = client.post("/v1/messages", json={**asked("Hi"), "stream": stream, **change})
            assert words in error(answer, 400, "invalid_request_error")


def test_a_prompt_that_is_too_long_says_so_in_the_words_that_clients_look_for(server: RunningServer) -> None:
    with server.client as client:
        answer = client.post("/v1/messages", json=asked("word " * server.engine.context_length))
    message = error(answer, 400, "invalid_request_error")
    assert message.startswith("prompt is too long: ")
    assert str(server.engine.context_length) in message


INVALID = "invalid_request_error"
WRONG: list[Any] = [
    3,
    "x",
    True,
    [],
    [[]],
    [3],
    {},
    {"type": 3},
    {"type": "text"},
    [{"type": []}],
    [{"role": "user"}],
    -1.5,
]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("body", [None, 3, "x", [], [{}], {}, {"messages": {"0": 1}}])
def test_a_body_of_another_type_is_a_bad_request(server: RunningServer, path: str, body: Any) -> None:
    with server.client as client:
        error(client.post(path, content=json.dumps(body), headers={"content-type": "application/json"}), 400, INVALID)


FIELDS = (
    "model messages system tools tool_choice thinking output_config max_tokens temperature top_p top_k stop_sequences "
    "stream metadata"
)


@pytest.mark.parametrize("field", FIELDS.split())
def test_wrong_types_are_bad_requests_or_mean_something(server: RunningServer, field: str) -> None:
    refused = 0
    with server.client as client:
        for wrong in WRONG:
            answer = client.post("/v1/messages", json=asked("Hi", max_tokens=1) | {field: wrong})
            if answer.status_code == 404:
                error(answer, 404, "not_found_error")
            elif answer.status_code != 200:
                refused += 1
                error(answer, 400, INVALID)
            else:
                assert "message" in answer.text
        for place in ("content", "role"):
            for wrong in WRONG:
                message = {"role": "user", "content": "Hi"} | {place: wrong}
                assert client.post("/v1/messages", json=asked("", messages=[message])).status_code in (200, 400)
    assert refused >= 4 or field == "model"


def test_keys_and_unknown_models_and_paths(start_server: Callable[..., RunningServer]) -> None:
    settings = ServerSettings(api_keys=("right",), max_body_size=2048, graceful_timeout=1)
    server = start_server(settings=settings)
    with server.client as client:
        error(client.post("/v1/messages", json=asked("Hi")), 401, "authentication_error")
        for header in ({"x-api-key": "right"}, {"Authorization": "Bearer right"}):
            assert client.post("/v1/messages", json=asked("Hi"), headers=header).status_code == 200
        key = {"x-api-key": "right"}
        unknown = client.post("/v1/messages", json=asked("Hi", model="claude-9"), headers=key)
        assert "parallm-demo" in error(unknown, 404, "not_found_error")
        error(client.post("/v1/messages/batches", json={}, headers=key), 404, "not_found_error")
        error(client.post("/v1/messages", json=asked("x" * 3000), headers=key), 413, "request_too_large")


def test_an_engine_failure_is_an_error_event(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    core = server.engine._engine.core
    monkeypatch.setattr(core.target, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
    *_, last = events_of(server, asked("Hi"))
    assert last["type"] == "error"
    assert last["error"]["type"] == "api_error"
    assert "out of memory" in last["error"]["message"]
    with server.client as client:
        error(client.post("/v1/messages", json=asked("Hi")), 500, "api_error")


def test_a_tool_that_is_loaded_leaves_the_prompt_before_it_as_it_is(server: RunningServer) -> None:
    """And it can be called."""
    late = {**TIMER, "strict": None, "defer_loading": True}
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
    history = [*asked("Hello!")["messages"], {"role": "assistant", "content": [call]}]

    def counted(content: Any, tools: list[Any]) -> int:
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content}
        body = {"messages": [*history, {"role": "user", "content": [result]}], "tools": tools}
        with server.client as client:
            return int(client.post("/v1/messages/count_tokens", json=body).raise_for_status().json()["input_tokens"])

    function = {"name": "set_timer", "parameters": TIMER["input_schema"]}
    definition = json.dumps({"type": "function", "function": function})
    referred = counted([{"type": "tool_reference", "tool_name": "set_timer"}], [WEATHER, late])
    assert referred == counted(definition, [WEATHER])
    assert counted("nothing", [WEATHER, late]) == counted("nothing", [WEATHER])
    found = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "tool_reference", "tool_name": "set_timer"}],
    }
    body = {**asked(""), "messages": [*history, {"role": "user", "content": [found]}], "tools": [WEATHER, late]}
    with server.client as client:
        forced = {"type": "tool", "name": "set_timer"}
        answer = client.post("/v1/messages", json={**body, "tool_choice": forced}).raise_for_status().json()
    assert [block["name"] for block in answer["content"]] == ["set_timer"]
