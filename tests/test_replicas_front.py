"""Before Ray Serve's proxy: Ray's own headers do nothing, and what Ray leaves open ends as a server ends it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http import auto

from parallm_openai.replicas import front as replicas_front
from parallm_openai.replicas.front import IMPORT_PATH, middlewares
from parallm_openai.settings import ServerSettings

CHAT = "/v1/chat/completions"
OURS = [(b"openai-processing-ms", b"1")]


class Proxy:
    """Ray's proxy, which sends these messages and then returns, or fails."""

    def __init__(self, messages: Sequence[Message], error: Exception | None = None) -> None:
        self.messages = messages
        self.error = error
        self.seen: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
        for message in self.messages:
            await send(message)
        if self.error is not None:
            raise self.error


def start(kind: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] = OURS) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *headers]}


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def front(proxy: Proxy) -> ASGIApp:
    app: ASGIApp = proxy
    for each in middlewares():
        app = each.cls(app, *each.args, **each.kwargs)
    return app


async def asked(proxy: Proxy, path: str = CHAT, headers: Any = None) -> httpx.Response:
    transport = httpx.ASGITransport(front(proxy))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post(path, json={}, headers=headers)


def test_ray_finds_the_middlewares() -> None:
    module, _, name = IMPORT_PATH.rpartition(".")
    assert (module, name) == (middlewares.__module__, middlewares.__name__)


async def test_answers_of_the_ingress_pass_as_they_are() -> None:
    answer = await asked(Proxy([start(b"text/event-stream"), part(b"data: 1\n\n"), part(b"", more=False)]))
    assert (answer.status_code, answer.text) == (200, "data: 1\n\n")
    refused = await asked(Proxy([start(b"application/json", 404), part(b"{}", more=False)]))
    assert (refused.status_code, refused.text) == (404, "{}")


@pytest.mark.parametrize(
    "proxy",
    [
        Proxy([start(b"text/plain", 404, []), part(b"Path '/' not found.", more=False)]),
        Proxy([start(b"text/plain", 503, []), part(b"unavailable", more=False)]),
        Proxy([]),
        Proxy([], RuntimeError("the ingress has died")),
    ],
)
async def test_what_ray_answers_or_does_not_is_an_error_to_try_again_on(proxy: Proxy) -> None:
    answer = await asked(proxy)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert (await asked(proxy, "/v1/messages")).json()["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/api/chat"])
async def test_a_stream_whose_ingress_is_lost_ends_with_an_error(path: str) -> None:
    lines = path == "/api/chat"
    kind, frame = (b"application/x-ndjson", b"{}\n") if lines else (b"text/event-stream", b"data: {}\n\n")
    answer = await asked(Proxy([start(kind), part(frame), part(frame)], RuntimeError()), path)
    assert answer.status_code == 200
    assert answer.content.startswith(frame * 2)
    last = answer.content.removeprefix(frame * 2).decode()
    data = [line.removeprefix("data: ") for line in last.splitlines() if line.startswith(("data: {", "{"))]
    error = json.loads(data[0])
    assert "error" in error or error["type"] == "error"
    assert error.get("sequence_number", 2) == 2


async def test_a_plain_answer_that_breaks_off_is_not_completed() -> None:
    """A part of it would look complete."""
    sent: list[Message] = []
    proxy = Proxy([start(b"application/json"), part(b'{"a":')])

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await front(proxy)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)
    assert [each.get("more_body") for each in sent] == [None, True]


@pytest.mark.parametrize(
    "name",
    [
        "x-request-timeout-seconds",
        "X-Request-Disconnect-Disabled",
        "x_session_id",
        "serve-multiplexed-model-id",
        "serve_multiplexed_model_id",
        "x-serve-router-token",
    ],
)
async def test_clients_cannot_send_headers_to_ray(name: str) -> None:
    proxy = Proxy([start(b"application/json"), part(b"{}", more=False)])
    await asked(proxy, headers={name: "1", "authorization": "Bearer key"})
    assert name.lower() not in proxy.seen[0]
    assert proxy.seen[0]["authorization"] == "Bearer key"


@pytest.mark.parametrize("given", [None, b"mine", b"\xff\xfe", b"a b", b"x" * 500])
async def test_a_request_has_one_id_that_ray_can_read(given: bytes | None) -> None:
    proxy = Proxy([start(b"application/json"), part(b"{}", more=False)])
    answer = await asked(proxy, headers=None if given is None else {b"x-request-id": given})
    own = answer.headers.get_list("x-request-id")
    assert own == [proxy.seen[0]["x-request-id"]]
    assert (own == ["mine"]) == (given == b"mine")
    assert own[0].isascii()
    assert len(own[0]) <= 200


async def test_monitors_of_the_cluster_reach_ray() -> None:
    answer = await asked(Proxy([start(b"text/plain", 200, []), part(b"success", more=False)]), "/-/healthz")
    assert answer.text == "success"


async def connected(sent: bytes) -> bytes:
    """What a server that Ray's proxy starts answers to these bytes, after which the client only waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "AutoHTTPProtocol", None)
        app = front(Proxy([start(b"text/plain"), part(b"fine", more=False)]))
        server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            serving = asyncio.create_task(server.serve([listener]))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(sent)
            try:
                return await asyncio.wait_for(reader.read(), 60)
            finally:
                writer.close()
                server.should_exit = True
                await serving


async def test_headers_are_of_bounded_length() -> None:
    refused = await connected(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 66_000)
    assert refused.startswith(b"HTTP/1.1 400")
    assert b'"code": "invalid_http"' in refused


async def test_headers_take_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_front, "LIMITS", ServerSettings(header_timeout=0.1))
    monkeypatch.setattr(replicas_front, "LOOK_SECONDS", 0.05)
    refused = await connected(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    assert refused.startswith(b"HTTP/1.1 408")
    answered = await connected(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"fine" in answered


async def test_websockets_are_refused() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": CHAT, "headers": [], "extensions": {"websocket.http.response": {}}}
    proxy = Proxy([])
    await front(proxy)(scope, receive, send)
    assert not proxy.seen
    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"])["error"]["code"] == "no_websockets"
