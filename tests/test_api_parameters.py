"""Every parameter of the SDK is in the table of docs/api.md, and the server does with it what the table says."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from support.servers import RunningServer

from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.schemas.completions import CompletionRequest
from parallm_openai.api.schemas.responses import ResponsesRequest

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HONOURED, EXTENSION, REFUSED, IGNORED = "✓", "✓¹", "400", "–"
ROUTES: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "chat": (
        chat.CompletionCreateParamsNonStreaming,
        ChatRequest,
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4},
    ),
    "completions": (
        completions.CompletionCreateParamsNonStreaming,
        CompletionRequest,
        "/v1/completions",
        {"prompt": "Hello", "max_tokens": 4},
    ),
    "responses": (
        responses.ResponseCreateParamsNonStreaming,
        ResponsesRequest,
        "/v1/responses",
        {"input": "Hello!", "max_output_tokens": 4},
    ),
}
SAMPLES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "web_search_options": {"search_context_size": "low"},
    "moderation": {"model": "omni-moderation-latest"},
    "modalities": ["text", "audio"],
    "verbosity": "low",
    "truncation": "auto",
    "background": True,
    "background_options": {"completion_window": "soonest"},
    "conversation": "conv_1",
    "context_management": [{"type": "compaction"}],
    "max_tool_calls": 3,
    "image": {"context_compression": "auto"},
    "access_programs": {"cyber": "standard"},
    "prompt": {"id": "pmpt_1"},
    "prediction": {"type": "content", "content": "Hello"},
    "user": "somebody",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
}


def table() -> dict[str, dict[str, str]]:
    """What the page says: route -> parameter -> mark."""
    marks: dict[str, dict[str, str]] = {route: {} for route in ROUTES}
    section = PAGE.read_text(encoding="utf-8").partition("## Parameters")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            for name in re.findall(r"`(\w+)`", cells[0]):
                for route, mark in zip(ROUTES, cells[1:4], strict=True):
                    if mark:
                        assert name not in marks[route], f"{name} stands twice"
                        marks[route][name] = mark
    return marks


TABLE = table()


@pytest.mark.parametrize("route", ROUTES)
def test_the_table_has_every_parameter_of_the_sdk_and_of_the_server(route: str) -> None:
    sdk, schema, _, _ = ROUTES[route]
    own = set(typing.get_type_hints(sdk))
    assert own <= set(TABLE[route]), "the SDK has a parameter that the table has not"
    assert set(schema.model_fields) == set(TABLE[route])
    extensions = {name for name, mark in TABLE[route].items() if mark == EXTENSION}
    assert not extensions & own
    assert {name for name, mark in TABLE[route].items() if mark == HONOURED} <= own


def marked(mark: str) -> list[tuple[str, str]]:
    return [(route, name) for route, names in TABLE.items() for name, found in names.items() if found == mark]


def send(server: RunningServer, route: str, extra: dict[str, Any]) -> httpx.Response:
    _, _, path, body = ROUTES[route]
    with server.client as client:
        return client.post(path, json={"model": server.model.name, "temperature": 0, **body, **extra})


@pytest.mark.parametrize(("route", "name"), marked(REFUSED))
def test_what_is_refused_is_refused_by_name(server: RunningServer, route: str, name: str) -> None:
    answer = send(server, route, {name: SAMPLES[name]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
    assert send(server, route, {name: None}).status_code == 200


@pytest.mark.parametrize(("route", "name"), marked(IGNORED))
def test_what_is_ignored_changes_nothing(server: RunningServer, route: str, name: str) -> None:
    answers = [send(server, route, extra).json() for extra in ({}, {name: SAMPLES[name]})]
    for answer in answers:
        for field in ("id", "created", "created_at", "completed_at", "output", "usage", name):
            answer[field] = text_of(answer) if field == "output" else None
    assert answers[0] == answers[1]


def text_of(answer: dict[str, Any]) -> Any:
    return answer["output"][0]["content"][0]["text"] if answer.get("output") else None


@pytest.mark.parametrize("route", ROUTES)
def test_a_parameter_that_nobody_knows_is_named_in_a_header(server: RunningServer, route: str) -> None:
    answer = send(server, route, {"no_such_parameter": 1})
    assert answer.status_code == 200
    assert answer.headers["x-parallm-ignored"] == "no_such_parameter"
