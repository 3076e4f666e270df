"""Requests that are written in another way are the same requests."""

from __future__ import annotations

from typing import Any

import pytest
from support.servers import RunningServer

BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0},
    "/chat/completions/render": {"messages": [{"role": "user", "content": "Hi"}]},
    "/completions": {"prompt": "Hi", "temperature": 0, "max_tokens": 4},
    "/responses": {"input": "Hi", "temperature": 0},
    "/responses/input_tokens": {"input": "Hi"},
    "/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "temperature": 0},
    "/messages/count_tokens": {"messages": [{"role": "user", "content": "Hi"}]},
    "/embeddings": {"input": "Hi"},
    "/chat": {},
    "/response": {},
}


@pytest.mark.parametrize("path", BODIES)
def test_a_path_without_v1_is_the_same_route(server: RunningServer, path: str) -> None:
    with server.client as client:
        bare, full = (client.post(f"{prefix}{path}", json=BODIES[path]) for prefix in ("", "/v1"))
    assert bare.status_code == full.status_code
    assert (full.status_code == 200) == (path not in ("/embeddings", "/chat", "/response"))
    assert set(bare.json()) == set(full.json())


def test_models_can_be_listed_without_v1(server: RunningServer) -> None:
    with server.client as client:
        assert client.get("/models").json() == client.get("/v1/models").json()
        assert client.get("/models/parallm-demo").json() == client.get("/v1/models/parallm-demo").json()


@pytest.mark.parametrize(
    "path", ["/v1/models", "/models", "/health", "/v1/stats", "/api/tags", "/api/version", "/api/ps"]
)
def test_whatever_can_be_read_has_a_head(server: RunningServer, path: str) -> None:
    with server.client as client:
        head, body = client.head(path), client.get(path)
        assert head.status_code == body.status_code == 200
        assert head.content == b""
        assert int(head.headers["content-length"]) > 0
        assert head.headers["content-type"] == body.headers["content-type"]
        # The connection goes on: a body would be read as the next answer.
        assert client.get(path).status_code == 200


def test_the_head_of_nothing_is_not_found(server: RunningServer) -> None:
    with server.client as client:
        assert client.head("/v1/nothing").status_code == 404
        assert client.head("/v1/models/gpt-9").status_code == 404
        assert client.head("/v1/completions").status_code == 405


def test_a_client_of_anthropics_gets_models_in_its_own_shape(server: RunningServer) -> None:
    with server.client as client:
        listed = client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
    assert set(listed) == {"data", "has_more", "first_id", "last_id"}
    assert listed["data"][0]["type"] == "model"
    assert listed["data"][0]["max_input_tokens"] == server.engine.context_length


@pytest.mark.parametrize("path", ["/v1/models/", "/models/", "/health//", "/docs/"])
def test_a_slash_at_the_end_changes_nothing(server: RunningServer, path: str) -> None:
    """A redirect would lead clients away from behind a proxy's path, and their keys with them."""
    with server.client as client:
        answer, plain = client.get(path), client.get(path.rstrip("/"))
    assert (answer.status_code, answer.content) == (200, plain.content)


def test_a_request_with_a_slash_at_the_end_is_answered(server: RunningServer) -> None:
    with server.client as client:
        answer = client.post("/v1/completions/", json={"prompt": "Hi", "temperature": 0, "max_tokens": 4})
    assert answer.status_code == 200
