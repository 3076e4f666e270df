"""The log: lines of text or of JSON, of bounded length, and never in the way of whoever writes them."""

from __future__ import annotations

import io
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.processes import Served

from parallm_openai import logs

SECRET = "Xylophone"


class Blocked(io.StringIO):
    """A stream that nobody reads until `released` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait()
        return super().write(text)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.Logger("test_logs")
    yield made
    for handler in made.handlers:
        handler.flush()


def attach(logger: logging.Logger, stream: io.StringIO, formatter: logging.Formatter) -> logs.Background:
    handler = logs.Background(stream)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    return handler


def test_a_line_of_json_has_the_records_own_fields(logger: logging.Logger) -> None:
    stream = io.StringIO()
    handler = attach(logger, stream, logs.JsonFormatter())
    logger.info("as %s", "text", extra={logs.FIELDS: {"message": "as keys", "prompt": 7}})
    handler.flush()
    line = json.loads(stream.getvalue())
    assert line["message"] == "as keys"
    assert (line["prompt"], line["level"], line["logger"]) == (7, "info", "test_logs")
    assert line["time"].endswith("+00:00")


def test_an_exception_stays_in_its_line(logger: logging.Logger) -> None:
    stream = io.StringIO()
    attach(logger, stream, logs.JsonFormatter())
    try:
        raise ValueError("first\nsecond \u2028 \ud800")
    except ValueError:
        logger.exception("it failed")
    (text,) = stream.getvalue().splitlines()
    assert "Traceback" in json.loads(text)["exception"]
    assert "second" in json.loads(text)["exception"]


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.BoundedFormatter()])
def test_a_line_is_bounded_whatever_an_error_quotes(logger: logging.Logger, formatter: logging.Formatter) -> None:
    stream = io.StringIO()
    attach(logger, stream, formatter)
    logger.error("begin %s end", "x" * 10**6)
    assert "begin" in stream.getvalue()
    assert "end" in stream.getvalue()
    assert len(stream.getvalue()) < 2 * logs.LONGEST


def test_an_error_is_written_before_its_process_goes_on(logger: logging.Logger) -> None:
    stream = io.StringIO()
    attach(logger, stream, logs.BoundedFormatter())
    logger.error("the last words")
    assert stream.getvalue() == "the last words\n"


def test_a_stream_that_nobody_reads_holds_nobody_up(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "PATIENCE", 0.01)
    stream = Blocked()
    attach(logger, stream, logs.BoundedFormatter())
    for number in range(2 * logs.WAITING):
        logger.error("line %d", number)
    # So far without an end; now somebody reads.
    monkeypatch.setattr(logs, "PATIENCE", 60)
    stream.released.set()
    _wait_until(lambda: "left out" in caplog.text)
    assert logs.WAITING <= len(stream.getvalue().splitlines()) <= logs.WAITING + 2


def _wait_until(reached: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if reached():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


@pytest.mark.slow
def test_a_server_writes_one_object_a_line() -> None:
    served = Served("--port", "0", "--log-format", "json", "--log-level", "debug", PYTHONUNBUFFERED="1")
    try:
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": f"Say {SECRET}."}], "max_tokens": 8}
        httpx.post(f"{served.url}/v1/chat/completions", json=chat, timeout=240).raise_for_status()
        refused = httpx.post(f"{served.url}/v1/chat/completions", json={}, timeout=240)
        assert refused.status_code == 400
    finally:
        served.end(signal.SIGTERM)
    lines = [json.loads(line) for line in served.output.splitlines() if line.startswith("{")]
    assert {"uvicorn.error", "uvicorn.access", "parallm_openai"} <= {line["logger"] for line in lines}
    answered, wrong = [line for line in lines if line["logger"].endswith("request_log") and line["method"] == "POST"]
    assert (answered["status"], answered["path"]) == (200, "/v1/chat/completions")
    assert answered["message"] == "POST /v1/chat/completions 200"
    assert 0 < answered["output"] <= 8
    assert answered["seconds"] >= answered["ttft"] > 0
    assert answered["request_id"].startswith("req_")
    assert (wrong["status"], wrong["request_id"]) == (400, refused.headers["x-request-id"])
    assert "messages" in wrong["error"]
    assert SECRET not in served.output
