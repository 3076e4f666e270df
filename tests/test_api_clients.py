"""Whatever a client sends, or fails to send or to read, costs the others nothing."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from support.errors import COMPLETION, assert_error
from support.servers import RunningServer, running_server

from parallm_openai.settings import ServerSettings

# Whatever a client sends


@pytest.mark.parametrize("own", ["mine", "x" * 200])
def test_a_clients_request_id_is_echoed(server: RunningServer, own: str) -> None:
    with server.client as client:
        assert client.get("/health", headers={"x-request-id": own}).headers["x-request-id"] == own


@pytest.mark.parametrize("own", [b"\xff\xfe", b"a b", b"", "é".encode(), b"tab\there"])
def test_a_request_id_that_is_no_plain_text_is_replaced(server: RunningServer, own: bytes) -> None:
    with server.client as client:
        answer = client.get("/health", headers=[(b"x-request-id", own)])
        assert answer.status_code == 200
        assert answer.headers["x-request-id"].startswith("req_")


def raw(server: RunningServer, request: bytes, *, timeout: float = 20) -> bytes:
    """What the server sends back until it closes; the client only listens after `request`."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=timeout) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def statuses_of(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


HEAD = b"Host: localhost\r\nConnection: close\r\n"
JSON = HEAD + b"Content-Type: application/json\r\n"
BODY = json.dumps(COMPLETION).encode()
HANDSHAKE = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def get(target: bytes, headers: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + HEAD + headers + b"\r\n"


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\n" + JSON + headers + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"\x00\x01\x02\r\n\r\n", {400}),
        (b"GET\r\n\r\n", {400}),
        (get(b"/", version=b"9.9"), {200, 400}),
        (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", {400}),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", {200}),
        (b"HEAD /health HTTP/1.1\r\n" + HEAD + b"\r\n", {200, 405}),
        (b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n", {404, 405}),
        (b"FOO /v1/models HTTP/1.1\r\n" + HEAD + b"\r\n", {405}),
        (b"POST /v1/configure?%ff=%00 HTTP/1.1\r\n" + HEAD + b"\r\n", {400}),
        (get(b"http://evil.example/health"), {404}),
        (get(b"/v1/models/%ff%00%0d%0a"), {404}),
        (get(b"/v1/models/%zz?%ff=%00"), {404}),
        (get(b"/" + b"x" * 10_000), {404}),
        (get(b"/health", b"X: " + b"x" * 200_000 + b"\r\n"), {400}),
        (get(b"/health", b"".join(b"X%d: x\r\n" % i for i in range(100_000))), {400}),
        (get(b"/health", b"X-Forwarded-For: \xff, ,\r\nX-Forwarded-Proto: \xfe\r\n"), {200}),
        (get(b"/health", b"Upgrade: h2c\r\n"), {200}),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5 + get(b"/health"), {200}),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\x00\r\n\r\n", {200, 400}),
        (b"GET /v1/responses HTTP/1.1\r\n" + HANDSHAKE, {400}),
        (post(b"Content-Length: " + b"9" * 19), {413}),
        (post(b"Content-Length: " + b"9" * 5000), {400}),
        (post(b"Content-Length: -1"), {400}),
        (post(b"Content-Length: \xb2"), {400}),
        (post(b"Content-Length: 5\r\nContent-Length: 6", b"{}"), {400}),
        (post(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"), {400}),
        (post(b"Transfer-Encoding: gzip"), {400, 501}),
        (post(b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)), {200}),
        (post(b"Transfer-Encoding: chunked", b"zz\r\n"), {400}),
        (post(b"Transfer-Encoding: chunked", b"2\r\nab\r\nzz\r\n"), {400}),
        (post(b"Expect: 100-continue\r\nContent-Length: %d" % len(BODY), BODY), {100, 200}),
        (post(b"Content-Encoding: gzip\r\nContent-Length: 2", b"\x1f\x8b"), {400, 415}),
    ],
)
def test_no_request_is_a_500(
    server: RunningServer, caplog: pytest.LogCaptureFixture, request_bytes: bytes, statuses: set[int]
) -> None:
    answer = raw(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 "), answer
    found = set(statuses_of(answer))
    assert found <= statuses, answer[:500]
    if max(found) >= 400 and b"HEAD" not in request_bytes[:4]:
        assert b'{"error": {"message"' in answer.replace(b'{"error":{"message"', b'{"error": {"message"')
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert sum(len(record.getMessage()) for record in caplog.records) < 2000
    with server.client as client:
        assert client.get("/health").status_code == 200


# Clients that wait


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningServer]:
    settings = ServerSettings(header_timeout=1, body_timeout=1, send_timeout=2, graceful_timeout=1)
    with running_server(settings=settings, max_batch_size=4) as running:
        yield running


HALF = [
    b"",
    b"GET",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    b"POST /v1/nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{",
]


def test_half_open_connections_end_while_others_are_served(impatient: RunningServer) -> None:
    address = ("127.0.0.1", int(impatient.url.rpartition(":")[2]))
    waiting = [socket.create_connection(address, timeout=30) for _ in range(40) for _ in HALF]
    try:
        for index, connection in enumerate(waiting):
            connection.sendall(HALF[index % len(HALF)])
        with impatient.client as client:
            assert client.post("/v1/completions", json=COMPLETION).status_code == 200
        answers = [b"".join(iter(partial(each.recv, 65536), b"")) for each in waiting]
    finally:
        for connection in waiting:
            connection.close()
    for index, answer in enumerate(answers):
        assert statuses_of(answer)[-1] == (404 if b"nowhere" in HALF[index % len(HALF)] else 408), answer


def test_dribbled_headers_and_bodies_end_too(impatient: RunningServer) -> None:
    address = ("127.0.0.1", int(impatient.url.rpartition(":")[2]))
    for start in HALF[1:]:
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(start)
            ended = False
            for _ in range(200):
                try:
                    connection.sendall(b"x" if b"chunked" not in start else b"1")
                    time.sleep(0.1)
                except OSError:
                    ended = True
                    break
            assert ended, start


def test_a_slow_body_that_keeps_a_pace_is_read(impatient: RunningServer) -> None:
    body = json.dumps(COMPLETION | {"user": "x" * 60_000}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]
            time.sleep(0.3)

    with impatient.client as client:
        headers = {"content-type": "application/json"}
        assert client.post("/v1/completions", content=pieces(), headers=headers).status_code == 200


STORY = json.dumps(COMPLETION | {"stream": True, "max_tokens": 3000, "ignore_eos": True, "n": 4}).encode()


@pytest.mark.parametrize(
    "request_bytes",
    [post(b"Content-Length: %d" % len(STORY), STORY), b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20],
    ids=["a stream", "whole answers"],
)
def test_a_client_that_never_reads_is_cut_off_and_frees_its_row(
    impatient: RunningServer, caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    caplog.set_level("INFO")
    known = set(impatient.http.server_state.connections)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(impatient.url.rpartition(":")[2])))
        while not (new := set(impatient.http.server_state.connections) - known):
            time.sleep(0.01)
        # The system's own buffers would hold megabytes.
        for each in new:
            each.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection.sendall(request_bytes)
        deadline = time.monotonic() + 60
        while "left its answer unread" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        impatient.wait_until_idle(30)
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"], caplog.text


def test_a_server_on_its_way_down_refuses_new_requests(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    with server.client as client:
        assert client.get("/health").status_code == 200
        server.http.in_flight.refusing = True
        for answer in (client.post("/v1/completions", json=COMPLETION), client.get("/v1/models")):
            assert_error(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1


def test_half_open_connections_make_room_for_new_ones(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    server.http.most_connections = 20
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    waiting = [socket.create_connection(address, timeout=30) for _ in range(60)]
    for connection in waiting:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
    try:
        with server.client as client:
            assert client.post("/v1/completions", json=COMPLETION).status_code == 200
        deadline = time.monotonic() + 20
        while len(server.http.server_state.connections) > 20:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        for connection in waiting:
            connection.close()
