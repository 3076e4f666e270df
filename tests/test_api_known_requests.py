"""Requests of programs that do not run in tests, as their sources build them: each is answered, nothing is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.chat_requests import WEATHER
from support.servers import RunningServer

from parallm_openai.api.leniency import HEADER

BARE = {"type": "function", "function": {"name": "now", "description": None, "parameters": None}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
PARTS = [{"type": "text", "text": "Hello!"}, {"type": "text", "text": "Who are you?"}]
SYSTEM = {"role": "system", "content": "You are helpful."}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
REQUESTS: dict[str, dict[str, Any]] = {
    # crates/open_ai: fields without a value are null in tools and left out elsewhere; a result without text is [].
    "Zed": {
        "messages": [
            SYSTEM,
            {"role": "user", "content": PARTS},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": [], "tool_call_id": "call_1"},
        ],
        **STREAMED,
        "max_completion_tokens": 30,
        "stop": ["<end>"],
        "temperature": 1.0,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "tools": [WEATHER, BARE],
        "prompt_cache_key": "0b0e5f6e-8c2f-4e6f-9a53-5d5f1f6f7a10",
    },
    # backend/open_webui: what the user has set of the parameters of a model.
    "Open WebUI": {
        "messages": [SYSTEM, {"role": "user", "content": "Hello!"}],
        "stream": True,
        "temperature": 0.8,
        "top_p": 0.9,
        "max_tokens": 30,
        "frequency_penalty": 0.0,
        "seed": 0,
        "stop": ["\n\n\n"],
    },
    # The same, for the title of a chat.
    "Open WebUI's tasks": {
        "messages": [{"role": "user", "content": "Make a title of: Hello!"}],
        "stream": False,
        "max_completion_tokens": 30,
    },
}


@pytest.mark.parametrize("program", REQUESTS)
def test_a_known_request_is_answered(server: RunningServer, program: str) -> None:
    body = {"model": server.model.name, **REQUESTS[program]}
    headers = {"Authorization": "Bearer none", "HTTP-Referer": "https://example.org/", "X-Title": program}
    with server.client as client:
        answer = client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert HEADER not in answer.headers
    if not body["stream"]:
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
        return
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] in ("stop", "length")
    assert bool(chunks[-1].get("usage")) == ("stream_options" in body)
