"""How a server ends: in order, with every request answered, and held up by nobody."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.processes import Served


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers, and sees to it that none outlives its test."""
    servers: list[Served] = []

    def start(*arguments: str, **options: Any) -> Served:
        servers.append(Served(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()


@pytest.mark.server
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_in_order(how: signal.Signals) -> None:
    server = Served("--port", "0", "--graceful-timeout", "100000")
    status = server.end(how)
    # An interrupt is the user's way to stop; a process that SIGTERM ends says so to who sent it.
    assert status == (0 if how is signal.SIGINT else -signal.SIGTERM), server.output
    assert "Traceback" not in server.output


LONG: dict[str, Any] = {"ignore_eos": True, "stream": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3500}


class Asked:
    """A request that a thread sends and waits for."""

    def __init__(self, server: Served, path: str, body: dict[str, Any]) -> None:
        self.begun, self.text, self.status, self.headers = threading.Event(), "", 0, httpx.Headers()
        body = body if path == "/v1/generate" else body | {"model": server.model}
        self._request = httpx.Request("POST", server.url + path, json=body)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        # What a connection that breaks off has brought is for the test to judge.
        with contextlib.suppress(httpx.HTTPError), httpx.Client(timeout=120) as client:
            answer = client.send(self._request, stream=True)
            self.status, self.headers = answer.status_code, answer.headers
            for text in answer.iter_text():
                self.text += text
                self.begun.set()

    def end(self) -> str:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.text


def until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def active(server: Served) -> int:
    numbers = httpx.get(f"{server.url}/v1/stats", timeout=240).json()["batching_stats"]
    return int(numbers["running"] + numbers["prefilling"] + numbers["waiting"])


@pytest.mark.parametrize(
    ("signals", "graceful", "status"),
    [
        ([signal.SIGTERM], "0", -signal.SIGTERM),
        ([signal.SIGTERM], "1", -signal.SIGTERM),
        ([signal.SIGINT], "0", 0),
        ([signal.SIGINT, signal.SIGINT], "60", 130),
        ([signal.SIGTERM, signal.SIGTERM], "60", -signal.SIGTERM),
    ],
    ids=str,
)
def test_what_outlasts_the_server_is_told_so(
    serve: Callable[..., Served], signals: list[signal.Signals], graceful: str, status: int
) -> None:
    server = serve("--port", "0", "--graceful-timeout", graceful, "--max-batch-size", "4")
    streams = [
        Asked(server, "/v1/chat/completions", CHAT | LONG),
        Asked(server, "/v1/completions", {"prompt": "Hi", "max_tokens": 3500} | LONG),
        Asked(server, "/v1/responses", {"input": "Hi", "max_output_tokens": 3500} | LONG),
    ]
    plain = [
        Asked(server, "/v1/completions", {"prompt": "Hi", "max_tokens": 3500, "ignore_eos": True}),
        Asked(server, "/v1/chat/completions", CHAT | {"ignore_eos": True}),
        Asked(server, "/v1/generate", {"prompt": "Hi", "max_tokens": 3500, "ignore_eos": True}),
    ]
    assert all(each.begun.wait(60) for each in streams)
    until(lambda: active(server) == 6)
    for how in signals:
        server.process.send_signal(how)
        time.sleep(0.3)
    assert server.process.wait(40) == status, server.output
    *completions, response = [each.end() for each in streams]
    assert "event: response.incomplete" in response.rstrip().split("\n\n")[-1]
    for text in completions:
        assert '"finish_reason":"length"' in text
        assert text.endswith("data: [DONE]\n\n")
    for each in plain:
        assert json.loads(each.end())["error"]["code"] == "unavailable"
        assert each.status == 503
        assert int(each.headers["retry-after"]) >= 1
    assert "Traceback" not in server.output
    assert "ERROR" not in server.output


def test_clients_that_neither_read_nor_write_do_not_hold_up_the_end(serve: Callable[..., Served]) -> None:
    server = serve("--port", "0", "--graceful-timeout", "0")
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    body = json.dumps({"prompt": "Hi", "model": server.model, "n": 8, "max_tokens": 2000, "logprobs": 20} | LONG)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    unread = socket.socket()
    unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    unread.connect(address)
    unread.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
    halves = [socket.create_connection(address, timeout=240) for _ in range(3)]
    for half, sent in zip(halves, ("", head, f"{head}100\r\n\r\n{{"), strict=True):
        half.sendall(sent.encode())
    until(lambda: active(server) == 8)
    time.sleep(0.5)
    assert server.end(signal.SIGINT) == 0, server.output
    last = b"".join(iter(lambda: halves[2].recv(65536), b""))
    assert last.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"unavailable"' in last
    for each in (unread, *halves):
        each.close()
    assert "Traceback" not in server.output
    assert "ERROR" not in server.output


def test_a_thread_that_is_busy_does_not_hold_up_the_end(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Compiling a grammar, encoding a text, rendering a template: none of them can be interrupted."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from parallm_openai import cli\n"
        "from parallm_openai.text.grammar.compiler import Grammars\n"
        "Grammars.regex = lambda *_: (print('compiling', flush=True), time.sleep(600))\n"
        # A pool of five threads, so that all of it is busy.
        "os.cpu_count = os.process_cpu_count = lambda: 1\n"
        "sys.argv[1:] = ['serve', '--port', '0', '--graceful-timeout', '0']\n"
        "cli.main()\n"
    )
    server = serve(command=[sys.executable, str(program)])
    asked = [Asked(server, "/v1/completions", {"prompt": "Hi", "guided_regex": "a"}) for _ in range(5)]
    until(lambda: server.output.count("compiling") == 5)
    assert server.end(signal.SIGINT) == 0, server.output
    for each in asked:
        assert json.loads(each.end())["error"]["code"] == "unavailable"
    assert "Traceback" not in server.output
