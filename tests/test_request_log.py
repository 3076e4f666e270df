"""One line for each request: what it cost, and never what it said."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.servers import RunningServer, demo_draft, running_server

SECRET = "Xylophone"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": f"Say {SECRET}."}], "max_tokens": 12, "temperature": 0}

Lines = Callable[[int], list[str]]


@pytest.fixture(scope="module")
def speculating() -> Iterator[RunningServer]:
    with running_server(demo_draft(), draft_length=3) as server:
        yield server


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, logger="parallm_openai.api.request_log")

    def written(count: int) -> list[str]:
        deadline = time.monotonic() + 30
        while True:
            found = [record.getMessage() for record in caplog.records if record.name.endswith("request_log")]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    return written


def figures(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\S+?)=(\S+)", line))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_a_line_tells_what_a_request_cost(speculating: RunningServer, lines: Lines, path: str, stream: bool) -> None:
    body = CHAT | {"stream": stream}
    if path == "/api/chat":
        body = {"messages": CHAT["messages"], "stream": stream, "options": {"num_predict": 12, "temperature": 0}}
    with speculating.client as client:
        client.post(path, json=body).raise_for_status()
    (line,) = lines(1)
    assert re.match(rf"POST {path} 200 \d+\.\d{{3}}s ", line)
    found = figures(line)
    assert 0 < int(found["output"]) <= 12
    assert int(found["prompt"]) > int(found["cached"]) >= 0
    assert {"ttft", "tokens/s", "accepted", "end"} <= found.keys()
    assert SECRET not in line


def test_choices_are_counted_together(speculating: RunningServer, lines: Lines) -> None:
    with speculating.client as client:
        usage = client.post("/v1/chat/completions", json=CHAT | {"n": 3, "temperature": 1}).json()["usage"]
    found = figures(lines(1)[0])
    assert (found["choices"], found["output"]) == ("3", str(usage["completion_tokens"]))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (CHAT | {"temperature": 9}, 400, "'temperature'"),
        (CHAT | {"model": "no\nsuch\x1b[31m"}, 404, "no?such?[31m"),
        ({}, 400, "'messages'"),
    ],
)
def test_a_refusal_says_why_in_one_line(
    speculating: RunningServer, lines: Lines, body: dict[str, Any], status: int, said: str
) -> None:
    with speculating.client as client:
        assert client.post("/v1/chat/completions", json=body).status_code == status
    (line,) = lines(1)
    assert line.startswith(f"POST /v1/chat/completions {status} ")
    assert said in line
    assert line.isprintable()


def test_no_path_writes_a_line_of_its_own(speculating: RunningServer, lines: Lines) -> None:
    with speculating.client as client:
        client.post("/v1/nothing%0A2026 INFO forged", json={})
    (line,) = lines(1)
    assert line.startswith("POST /v1/nothing%0A2026")
    assert line.isprintable()


def test_a_head_is_told_from_a_get(speculating: RunningServer, lines: Lines) -> None:
    with speculating.client as client:
        assert client.head("/nowhere").status_code == client.get("/nowhere").status_code == 404
    assert [line.split()[:3] for line in lines(2)] == [["HEAD", "/nowhere", "404"], ["GET", "/nowhere", "404"]]


def test_a_client_that_leaves_is_told_from_one_that_stays(speculating: RunningServer, lines: Lines) -> None:
    body = CHAT | {"max_tokens": 3000, "ignore_eos": True, "stream": True}
    with speculating.client as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    assert figures(lines(1)[0].replace("cut off", "cut-off"))["end"] in ("cut-off", "cancelled")


def test_what_only_reads_is_not_worth_a_line(speculating: RunningServer, lines: Lines) -> None:
    for path in ("/health", "/v1/models", "/v1/stats", "/"):
        httpx.get(speculating.url + path).raise_for_status()
    httpx.get(f"{speculating.url}/v1/nothing")
    assert [line.split()[1] for line in lines(1)] == ["/v1/nothing"]
