"""Every event of `/v1/responses` is one of the SDK's types, field by field, and together they tell the response."""

from __future__ import annotations

import json
import logging
import typing
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from support.responses import BEYOND_THE_SDK, WEATHER, create
from support.sdk_types import assert_exact
from support.servers import RunningServer

from parallm_openai.api import response_writer
from parallm_openai.logs import BoundedFormatter
from parallm_openai.settings import ServerSettings

# What OpenAI sends and the SDK's types, of this version or an older one, have only as extra fields.
EXTRA = {"response.function_call_arguments.done": {"name"}}
EVENTS = {
    typing.get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in typing.get_args(typing.get_args(ResponseStreamEvent)[0])
}
CASES: dict[str, dict[str, Any]] = {
    "text": {"input": "Hello!"},
    "text with log-probabilities": {"input": "Hello!", "top_logprobs": 2},
    "a call": {"input": "What is the weather in Paris?", "tools": [WEATHER]},
    "thoughts": {"input": "What is 123 + 345?", "reasoning": {"effort": "low"}},
    "sealed thoughts": {"input": "What is 123 + 345?", "reasoning": {"effort": "low"}, "store": False},
    "padded": {"input": "Hello!", "stream_options": {"include_obfuscation": True}},
    "cut short": {"input": "Tell me a story.", "max_output_tokens": 3},
    "cut short in thoughts": {"input": "What is 123 + 345?", "reasoning": {"effort": "low"}, "max_output_tokens": 3},
    "everything echoed": {
        "input": [{"role": "user", "content": "Hello!"}],
        "instructions": "Be brief.",
        "tools": [WEATHER],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
        "text": {"format": {"type": "json_schema", "name": "any", "schema": {"type": "integer"}}, "verbosity": "low"},
        "metadata": {"a": "b"},
        "max_tool_calls": 3,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "in-memory",
        "truncation": "auto",
        "background": False,
        "parallel_tool_calls": False,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "user": "u",
    },
}


def events_of(server: RunningServer, **body: Any) -> list[dict[str, Any]]:
    body = {"model": server.model.name, "stream": True, "temperature": 0, "max_output_tokens": 200} | body
    names, events = [], []
    with server.client as http, http.stream("POST", "/v1/responses", json=body) as lines:
        for line in lines.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    assert [event["type"] for event in events] == names
    return events


def assert_event(event: dict[str, Any]) -> None:
    extra = {"obfuscation", *EXTRA.get(event["type"], ())}
    shown = {name: value for name, value in event.items() if name not in extra}
    if "response" in shown:
        assert set(shown["response"]) >= BEYOND_THE_SDK
        shown["response"] = {name: value for name, value in event["response"].items() if name not in BEYOND_THE_SDK}
    if "logprobs" in shown:
        # The events' own type of a log-probability lacks the bytes, which a response's has.
        shown["logprobs"] = [without_bytes(entry) for entry in event["logprobs"]]
    kind = EVENTS[event["type"]]
    assert_exact(kind, shown)
    kind.model_validate(shown, strict=True)


def without_bytes(entry: dict[str, Any]) -> dict[str, Any]:
    top = [{name: value for name, value in each.items() if name != "bytes"} for each in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}


def retold(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together, which checks every event against those before it."""
    items: list[dict[str, Any]] = []
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
        elif "output_index" in event:
            assert event["output_index"] == len(items) - 1
            item = items[-1]
            assert event.get("item_id", item["id"]) == item["id"]
            assert event.get("content_index", 0) == 0
            if kind == "response.content_part.added":
                item["content"].append(event["part"])
            elif kind == "response.function_call_arguments.delta":
                item["arguments"] += event["delta"]
            elif kind.endswith(".delta"):
                item["content"][0]["text"] += event["delta"]
                item["content"][0].get("logprobs", []).extend(event.get("logprobs", []))
            elif kind == "response.content_part.done":
                assert event["part"] == item["content"][0]
            elif kind == "response.function_call_arguments.done":
                assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
            elif kind == "response.output_item.done":
                late = {"status", "encrypted_content"}
                assert {**event["item"], **{name: item.get(name) for name in late}} == {
                    **item,
                    **{name: item.get(name) for name in late},
                }
                items[-1] = event["item"]
            else:
                assert event["text"] == item["content"][0]["text"]
    return items


@pytest.mark.parametrize("case", CASES)
def test_every_event_is_exactly_the_sdks_and_together_they_tell_the_response(server: RunningServer, case: str) -> None:
    events = events_of(server, **CASES[case])
    for event in events:
        assert_event(event)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    final = events[-1]["response"]
    assert retold(events[:-1]) == final["output"]
    first = events[0]["response"]
    moving = {"status", "output", "usage", "completed_at", "incomplete_details", "store"}
    assert {name: value for name, value in first.items() if name not in moving} == {
        name: value for name, value in final.items() if name not in moving
    }
    if CASES[case].get("store") is not False:
        with server.client as http:
            assert http.get(f"/v1/responses/{final['id']}").json() == final


def test_the_request_is_echoed(server: RunningServer) -> None:
    sent = CASES["everything echoed"]
    body = events_of(server, **sent)[-1]["response"]
    same = set(sent) - {"input", "service_tier", "prompt_cache_retention", "text", "tools"}
    assert {name: body[name] for name in same} == {name: sent[name] for name in same}
    assert body["service_tier"] == "default"
    assert body["prompt_cache_retention"] == "in_memory"
    assert body["text"] == {
        "format": {**sent["text"]["format"], "description": None, "strict": None},
        "verbosity": "low",
    }
    assert body["tools"] == [WEATHER]
    assert body["store"] is True


def test_padding_fills_deltas_up_to_lengths_that_tell_nothing(server: RunningServer) -> None:
    deltas = [event for event in events_of(server, **CASES["padded"]) if event["type"].endswith(".delta")]
    assert deltas
    assert all((len(event["delta"]) + len(event["obfuscation"])) % 16 == 0 for event in deltas)
    assert all("obfuscation" not in event for event in events_of(server, input="Hello!"))


def test_sealed_thoughts_come_with_the_finished_item(server: RunningServer) -> None:
    events = events_of(server, **CASES["sealed thoughts"])
    [done] = [each["item"] for each in events if each["type"] == "response.output_item.done"][:1]
    assert done["type"] == "reasoning"
    assert done["encrypted_content"]
    plain = events_of(server, **CASES["thoughts"])[-1]["response"]["output"][0]
    assert plain["content"] == done["content"]
    assert "encrypted_content" not in plain


def test_an_error_of_the_server_itself_ends_the_stream_as_failed_and_is_logged_once_in_bounds(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("x" * 100_000)

    monkeypatch.setattr(response_writer.ResponseWriter, "_usage", broken)
    with caplog.at_level(logging.ERROR):
        events = events_of(server, input="Hello!")
    for event in events:
        assert_event(event)
    failed = events[-1]["response"]
    assert (events[-1]["type"], failed["status"], failed["error"]["code"]) == (
        "response.failed",
        "failed",
        "server_error",
    )
    assert "x" * 100 not in failed["error"]["message"]
    assert all(item["status"] != "in_progress" for item in failed["output"])
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    logged = BoundedFormatter().format(record)
    assert "Traceback" in logged
    assert "xxx" in logged
    assert len(logged) < 10_000
    server.wait_until_idle()
    with server.client as http:
        assert http.get(f"/v1/responses/{failed['id']}").status_code == 404


def test_a_request_that_takes_too_long_fails_and_leaves_no_row(start_server: Callable[..., RunningServer]) -> None:
    slow = start_server(settings=ServerSettings(request_timeout=0.3, graceful_timeout=1))
    events = events_of(slow, input="Tell me a story.", max_output_tokens=8000, ignore_eos=True)
    for event in events:
        assert_event(event)
    assert events[-1]["type"] == "response.failed"
    assert "limit" in events[-1]["response"]["error"]["message"]
    slow.wait_until_idle()


def test_a_whole_response_is_the_last_event_of_a_stream(server: RunningServer) -> None:
    whole = create(server, "Hello!").model_dump()
    last = Response.model_validate(
        events_of(server, input="Hello!", max_output_tokens=100)[-1]["response"]
    ).model_dump()
    for body in (whole, last):
        for name in ("id", "created_at", "completed_at", "usage"):
            body.pop(name)
        for item in body["output"]:
            item.pop("id")
    assert whole == last
