"""What a request is told of cached prompts: what it was spared itself, and nothing of what others have sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.servers import RunningServer

from parallm_openai.settings import ServerSettings

SECRET = "Please remember these words: " + "tree, river, stone, " * 60 + "1234"


def asked(server: RunningServer, content: str = SECRET, key: str | None = None, **body: Any) -> tuple[int, int]:
    """The prompt tokens of a chat request, and how many of them were cached."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    message = {"role": "user", "content": content}
    sent = {"model": "parallm-demo", "messages": [message], "max_tokens": 2, "temperature": 0, **body}
    with server.client as client:
        usage = client.post("/v1/chat/completions", json=sent, headers=headers).json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def test_cached_tokens_are_told_in_steps(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    assert asked(server)[1] == 0
    prompt, cached = asked(server)
    assert cached % 128 == 0
    assert prompt - 128 <= cached < prompt
    assert server.engine.stats()["prefix_cache"]["hit_tokens"] >= cached


def test_a_digit_more_guessed_right_shows_in_no_count(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    asked(server)
    guesses = [SECRET[:-1] + digit for digit in "0123456789"]
    assert len({asked(server, guess)[1] for guess in guesses}) == 1


@pytest.mark.parametrize("field", ["key", "prompt_cache_key"])
def test_who_has_another_key_learns_nothing(start_server: Callable[..., RunningServer], field: str) -> None:
    server = start_server(settings=ServerSettings(api_keys=("alice", "bob"), graceful_timeout=1))
    alice, bob = (
        ({"key": "alice"}, {"key": "bob"})
        if field == "key"
        else (
            {"key": "alice", field: "a"},
            {"key": "alice", field: "b"},
        )
    )
    asked(server, **alice)
    assert asked(server, **bob)[1] == 0
    assert asked(server, **alice)[1] > 0
    assert asked(server, **bob)[1] > 0, "its own by now"
