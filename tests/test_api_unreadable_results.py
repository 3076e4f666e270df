"""What a tool returned stays in a conversation: an image there must not end it, though the model reads text only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.chat_requests import WEATHER
from support.errors import assert_error
from support.servers import RunningServer

from parallm_openai.api.leniency import HEADER
from parallm_openai.settings import ServerSettings

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
DATA_URL = f"data:image/png;base64,{PIXEL}"
SOURCE = {"type": "base64", "media_type": "image/png", "data": PIXEL}


def chat(*returned: dict[str, Any]) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    return {
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": "Show me Rome."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": list(returned)},
        ],
    }


def response(*returned: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Rome"}'}
    output = {"type": "function_call_output", "call_id": "call_1", "output": list(returned)}
    return {"input": [{"role": "user", "content": "Show me Rome."}, call, output]}


def message(*returned: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": list(returned)}
    return {
        "messages": [
            {"role": "user", "content": "Show me Rome."},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
        "max_tokens": 5,
    }


# A route, what asks it with a tool's result, a route that shows the prompt or its length, a part's type for text, and
# parts that the model cannot read.
SURFACES: dict[str, tuple[str, Callable[..., dict[str, Any]], str, str, tuple[dict[str, Any], ...]]] = {
    "chat": (
        "/v1/chat/completions",
        chat,
        "/v1/chat/completions/render",
        "text",
        ({"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "file", "file": {"file_id": "f"}}),
    ),
    "responses": (
        "/v1/responses",
        response,
        "/v1/responses/input_tokens",
        "input_text",
        ({"type": "input_image", "image_url": DATA_URL}, {"type": "input_file", "file_id": "f"}),
    ),
    "messages": (
        "/v1/messages",
        message,
        "/v1/messages/count_tokens",
        "text",
        (
            {"type": "image", "source": SOURCE},
            {"type": "document", "source": {**SOURCE, "media_type": "application/pdf"}},
        ),
    ),
}
NAMES = {
    "chat": "messages[2].content[1]",
    "responses": "input[2].output[1]",
    "messages": "messages[2].content[0].content[1]",
}


def post(server: RunningServer, path: str, body: dict[str, Any]) -> httpx.Response:
    with server.client as client:
        return client.post(path, json={"model": "parallm-demo", **body})


@pytest.mark.parametrize("surface", SURFACES)
def test_words_stand_in_the_place_of_what_the_model_cannot_read(server: RunningServer, surface: str) -> None:
    path, asking, shown, kind, unreadable = SURFACES[surface]
    for part in unreadable:
        answer = post(server, path, asking({"type": kind, "text": "Sunny. "}, part))
        assert answer.status_code == 200, answer.text
        assert answer.headers[HEADER] == NAMES[surface]
        words = f"[{part['type']}: left out, because this model reads text only]"
        prompts = [
            post(server, shown, _generating_nothing(asking({"type": kind, "text": "Sunny. "}, second))).json()
            for second in (part, {"type": kind, "text": words})
        ]
        assert prompts[0] == prompts[1]


def _generating_nothing(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "max_tokens"}


@pytest.mark.parametrize("surface", SURFACES)
def test_a_strict_server_refuses_them(start_server: Callable[..., RunningServer], surface: str) -> None:
    path, asking, _, kind, unreadable = SURFACES[surface]
    server = start_server(settings=ServerSettings(strict=True, graceful_timeout=1))
    answer = post(server, path, asking({"type": kind, "text": "Sunny."}, unreadable[0]))
    assert answer.status_code == 400
    assert NAMES[surface] in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [SURFACES["chat"][4][0]]}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [SURFACES["responses"][4][0]]}]}),
    ],
)
def test_what_a_user_attaches_is_refused(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    assert "text only" in assert_error(post(server, path, body), 400)


def test_a_tool_cannot_return_a_call(server: RunningServer) -> None:
    nested = {"type": "tool_use", "id": "call_2", "name": "get_weather", "input": {}}
    answer = post(server, "/v1/messages", message(nested))
    assert answer.status_code == 400
    assert "cannot stand there" in answer.json()["error"]["message"]
