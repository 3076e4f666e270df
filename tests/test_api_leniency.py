"""What a client always sends and nobody here needs is left out and named in a header; a strict server refuses it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chat_requests import WEATHER
from support.errors import assert_error
from support.servers import RunningServer

from parallm_openai.api.leniency import HEADER, MAX_NAMES, Ignored
from parallm_openai.settings import ServerSettings

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
FLAT = {"type": "function", **WEATHER["function"]}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 40},
    RESPONSES: {"input": "Hello!", "max_output_tokens": 40},
    "/v1/completions": {"prompt": "Hello!", "max_tokens": 4},
    "/v1/generate": {"prompt": "Hello!", "max_tokens": 4},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 40},
}
CASES: list[tuple[str, dict[str, Any], str]] = [
    *((path, {"client_metadata": {"a": 1}}, "client_metadata") for path in BODIES),
    *((path, {"keep_alive": "5m", "temprature": 0.5}, "keep_alive, temprature") for path in BODIES),
    (CHAT, {"max_token": 5}, "max_token"),
    (CHAT, {"response_format": {"type": "text", "x": 1}}, "response_format.x"),
    (CHAT, {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather", "a": 1}}}, "?"),
    (CHAT, {"tools": [{"type": "custom", "custom": {"name": "f"}}, WEATHER]}, "tools[0]"),
    (RESPONSES, {"tools": [FLAT, {"type": "web_search"}, {"type": "local_shell"}]}, "tools[1], tools[2]"),
    (RESPONSES, {"tools": [{"type": "custom", "name": "patch", "format": {"type": "grammar"}}]}, "tools[0]"),
    (
        RESPONSES,
        {"tools": [{"type": "namespace", "name": "mcp", "tools": [FLAT, {"type": "custom", "name": "f"}]}]},
        "tools[0].tools[1]",
    ),
    (RESPONSES, {"tools": [{**FLAT, "defer_loading": True}]}, "tools[0].defer_loading"),
    (RESPONSES, {"text": {"verbosity": "low", "format": {"type": "text", "y": 1}, "x": 1}}, "?"),
    (RESPONSES, {"reasoning": {"effort": "none", "encrypted": True}}, "reasoning.encrypted"),
    ("/v1/messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ("/v1/messages", {"tool_choice": {"type": "auto", "hint": 1}}, "tool_choice.hint"),
    ("/v1/messages", {"context_management": {}, "output_config": {"task_budget": 1}}, "?"),
]
# Words that are newer than this server, in fields that cannot change the answer.
NEW_WORDS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/messages", {"thinking": {"type": "disabled", "display": "updates"}}, "thinking.display"),
    (CHAT, {"verbosity": "chatty"}, "verbosity"),
    (RESPONSES, {"text": {"verbosity": "chatty"}}, "text.verbosity"),
    (RESPONSES, {"reasoning": {"summary": "poetic"}}, "reasoning.summary"),
    (RESPONSES, {"prompt_cache_retention": "7d"}, "prompt_cache_retention"),
    (RESPONSES, {"include": ["reasoning.encrypted_content", "dreams"]}, "include[1]"),
]
CASES += NEW_WORDS


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    with server.client as client:
        return client.post(path, json={"temperature": 0, **body})


def said(path: str, answer: httpx.Response) -> Any:
    body = answer.json()
    match path:
        case "/v1/chat/completions":
            return body["choices"][0]["message"]
        case "/v1/responses":
            return [(item["type"], item.get("content") and item["content"][0]["text"]) for item in body["output"]]
        case "/v1/messages":
            return body["content"]
    return body["text"] if "text" in body else body["choices"][0]["text"]


@pytest.mark.parametrize(("path", "more", "names"), CASES)
def test_the_answer_is_the_one_without_it_and_a_header_says_so(
    server: RunningServer, path: str, more: dict[str, Any], names: str
) -> None:
    known = {"tools", "tool_choice", "text", "response_format", "reasoning", "output_config", "include", "thinking"}
    answer = post(server, path, **BODIES[path], **more)
    assert answer.status_code == 200, answer.text
    if names != "?":
        assert answer.headers[HEADER] == names
    assert answer.headers[HEADER]
    if not known & set(more):
        plain = post(server, path, **BODIES[path])
        assert HEADER not in plain.headers
        assert said(path, answer) == said(path, plain)


def test_tools_that_are_left_out_are_not_shown_to_the_model(server: RunningServer) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
    tools = [{"type": "web_search"}, WEATHER, {"type": "custom", "custom": {"name": "f"}}]
    prompts = [post(server, f"{CHAT}/render", **body, tools=each).json()["prompt"] for each in (tools, [WEATHER])]
    assert prompts[0] == prompts[1]


def test_errors_count_the_tools_that_are_left_out(server: RunningServer) -> None:
    bad = {"type": "object", "properties": []}
    function = {"name": "f", "parameters": bad}
    chat = post(server, CHAT, **BODIES[CHAT], tools=[{"type": "custom"}, {"type": "function", "function": function}])
    assert "tools[1].function.parameters" in assert_error(chat, 400)
    flat = post(server, RESPONSES, **BODIES[RESPONSES], tools=[{"type": "mcp"}, {"type": "function", **function}])
    assert "tools[1].parameters" in assert_error(flat, 400)


def test_a_stream_has_the_header_too(server: RunningServer) -> None:
    for path in (CHAT, RESPONSES, "/v1/messages"):
        assert post(server, path, **BODIES[path], stream=True, x=1).headers[HEADER] == "x"


def test_an_error_has_the_header_too(server: RunningServer) -> None:
    """The misspelt field is often the reason for the error."""
    misspelt = post(server, "/v1/messages", messages=[{"role": "user", "content": "Hi"}], max_token=5)
    assert misspelt.status_code == 400
    assert misspelt.headers[HEADER] == "max_token"
    unknown = post(server, CHAT, **BODIES[CHAT], modle="x", model="y")
    assert unknown.status_code == 404
    assert unknown.headers[HEADER] == "modle"


def test_what_is_ignored_is_logged(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "parallm_openai.api.route"):
        post(server, CHAT, **BODIES[CHAT], temprature=1)
    assert f"{CHAT} ignores temprature" in caplog.text


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (CHAT, {"temprature": 1, "temperature": "hot"}, "temperature"),
        (CHAT, {"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        (RESPONSES, {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        (CHAT, {"tools": [{"type": 3}]}, "tools[0].type"),
        (CHAT, {"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
    ],
)
def test_what_decides_the_answer_is_still_refused(
    server: RunningServer, path: str, more: dict[str, Any], param: str
) -> None:
    answer = post(server, path, **BODIES[path], **more)
    assert_error(answer, 400)
    assert answer.json()["error"]["param"] == param


def test_a_request_without_a_model_means_the_one_that_is_served(server: RunningServer) -> None:
    for path in (CHAT, RESPONSES, "/v1/completions", "/v1/messages"):
        for more in ({}, {"model": None}):
            assert post(server, path, **BODIES[path], **more).json()["model"] == "parallm-demo"


def test_an_answer_longer_than_the_context_is_cut_to_it(server: RunningServer) -> None:
    limit = server.engine.context_length
    for name in ("max_tokens", "max_completion_tokens"):
        assert post(server, CHAT, **{**BODIES[CHAT], "max_tokens": None, name: limit}).status_code == 200
    assert post(server, RESPONSES, input="Hello!", max_output_tokens=10**20).status_code == 200
    # OpenAI refuses it there.
    assert_error(post(server, "/v1/completions", prompt="Hello!", max_tokens=limit), 400, "context_length_exceeded")
    long = [{"role": "user", "content": "word " * limit}]
    refused = post(server, CHAT, messages=long, max_tokens=10**20)
    assert "messages" in assert_error(refused, 400, "context_length_exceeded")


STRICT: list[tuple[str, dict[str, Any], str, str]] = [
    *((path, {"nonsense": 1}, "nonsense", "unknown_parameter") for path in BODIES if path != "/v1/messages"),
    (CHAT, {"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown_parameter"),
    (CHAT, {"tools": [WEATHER, {"type": "custom", "custom": {}}]}, "tools[1].type", "unsupported_parameter"),
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    (CHAT, {"model": None}, "model", "missing_required_parameter"),
    (CHAT, {"max_tokens": 10**6}, "max_tokens", "context_length_exceeded"),
    (RESPONSES, {"max_output_tokens": 10**6}, "max_output_tokens", "context_length_exceeded"),
]


def test_a_strict_server_refuses_all_that_by_name(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(strict=True, graceful_timeout=1))
    for path, more, param, code in STRICT:
        named = {} if path == "/v1/generate" else {"model": "parallm-demo"}
        answer = post(server, path, **{**named, **BODIES[path], **more})
        assert_error(answer, 400, code)
        assert answer.json()["error"]["param"] == param
    for path, more, name in NEW_WORDS:
        answer = post(server, path, **{"model": "parallm-demo", **BODIES[path], **more})
        assert answer.status_code == 400
        assert f"'{name}'" in answer.json()["error"]["message"]
    refused = post(server, "/v1/messages", model="parallm-demo", **BODIES["/v1/messages"], nonsense=1)
    assert "nonsense" in refused.json()["error"]["message"]
    long = post(server, "/v1/messages", **{"model": "parallm-demo", **BODIES["/v1/messages"], "max_tokens": 10**6})
    # A shorter conversation would not help.
    assert long.json()["error"]["message"].startswith("This model's maximum context length")


@pytest.mark.parametrize("name", [" ", "", "zz ", " zz", "\r\nx: y", "ü"])
@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_field_of_any_name_gets_an_answer(server: RunningServer, path: str, name: str) -> None:
    answer = post(server, path, **BODIES[path], **{name: 1})
    assert answer.status_code == 200
    assert answer.headers[HEADER]


@given(names=st.lists(st.text(max_size=30), max_size=2 * MAX_NAMES))
def test_any_names_make_a_header(names: list[str]) -> None:
    ignored = Ignored(strict=False)
    body: dict[str, Any] = {"known": 1, **dict.fromkeys(names, 1)}
    unknown = [name for name in body if name != "known"]
    found = [{"type": "extra_forbidden", "loc": ("body", name)} for name in unknown]
    assert ignored.add_unknown(body, found) == bool(unknown)
    assert body == {"known": 1}
    header = ignored.header()
    assert header.isascii()
    assert header.isprintable()
    assert header == header.strip(), "HTTP allows no space at either end"
    assert header.count(", ") >= min(len(unknown), MAX_NAMES) - 1
    assert bool(ignored) == bool(unknown)
