"""The judges see what they are there to see: faults made by hand, and answers without any."""

from __future__ import annotations

import json
from email.message import Message
from typing import Any

import pytest

from fuzz.case import Case
from fuzz.exchange import Exchange
from fuzz.findings import Findings, traceback
from fuzz.json_text import Pairs, Raw, encode, names_a_field
from fuzz.verdict import problems

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
KNOWN = frozenset({"model", "messages", "tools"})
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def answered(status: int, body: Any, kind: str = "application/json", **more: Any) -> list[str]:
    headers = Message()
    headers["Content-Type"] = kind
    text = body if isinstance(body, str) else json.dumps(body)
    case = Case.of("test", "/v1/chat/completions", {**CHAT, **more})
    return list(problems(Exchange(case, 0.0, 0.0, status, headers, text.encode()), KNOWN))


def error(**changes: Any) -> dict[str, Any]:
    return {"error": {"message": "No.", "type": "invalid_request_error", "param": "model", "code": None, **changes}}


def choice(content: str = "Hi", **changes: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop", **changes}], "usage": USAGE}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, choice()),
        (400, error()),
        (400, error(param="messages[0].content")),
        (400, error(param="tools")),
        (400, error(param=None, code="invalid_json")),
        (429, error(code="rate_limit_exceeded")),
    ],
)
def test_a_good_answer_has_no_fault(status: int, body: Any) -> None:
    assert not answered(status, body)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "{"),
        (200, '{"choices": NaN}'),
        (200, choice(finish_reason=None)),
        (200, {"choices": [], "usage": USAGE}),
        (200, choice() | {"usage": {**USAGE, "total_tokens": 4}}),
        (400, {"detail": "No."}),
        (400, {"error": {"message": "No."}}),
        (400, error(param=None)),
        (400, error(param="messages[1].content")),
        (400, error(param="response_format")),
        (400, error(message="x" * 5000)),
        (429, error(code=None)),
        (500, error(code="internal_error")),
    ],
)
def test_a_bad_answer_has_a_fault(status: int, body: Any) -> None:
    assert answered(status, body)


@pytest.mark.parametrize(
    ("frames", "good"),
    [
        (['{"choices": []}', "[DONE]"], True),
        (['{"error": {"code": "timeout"}}', "[DONE]"], True),
        (['{"choices": []}'], False),
        (['{"choices": [}', "[DONE]"], False),
        (['{"error": {"code": "internal_error", "message": "No."}}'], False),
    ],
)
def test_a_stream_is_good_to_its_end(frames: list[str], good: bool) -> None:
    body = "".join(f"data: {frame}\n\n" for frame in frames)
    assert (not answered(200, body, "text/event-stream", stream=True)) is good


def test_an_answer_is_read_against_its_schema() -> None:
    headers = Message()
    headers["Content-Type"] = "application/json"
    case = Case.of("test", "/v1/chat/completions", CHAT, binding=("schema", {"type": "integer"}))
    for content, good in (("3", True), ('"3"', False), ("3 and", False)):
        exchange = Exchange(case, 0.0, 0.0, 200, headers, json.dumps(choice(content)).encode())
        assert (not list(problems(exchange, KNOWN))) is good


def test_a_field_is_named_if_all_but_its_end_is_there() -> None:
    value = {"messages": [{"content": [{"type": "text"}]}], "a.b": 1}
    for param in ("messages", "messages[0].content[0].text", "messages[0].name", "a.b", "tools"):
        assert names_a_field(param, value, KNOWN), param
    for param in ("", "nothing", "messages[1].content", "messages[0].x.y", "tools[0].function"):
        assert not names_a_field(param, value, KNOWN), param


def test_hostile_json_is_written_as_it_is_meant() -> None:
    value = {"a": Raw("NaN"), "b": Pairs([("k", 1), ("k", "\ud800")]), "c": [True, None]}
    assert encode(value) == '{"a":NaN,"b":{"k":1,"k":"\\ud800"},"c":[true,null]}'


def test_faults_with_one_cause_are_one_kind_with_its_shortest_request() -> None:
    found = Findings()
    log = 'Traceback (most recent call last)\n  File "/x/parallm_openai/a.py", line {}, in f\nValueError: {}\n'
    for line, text, size in ((3, "one", 9), (3, "two", 5), (3, "three", 7)):
        told = traceback(log.format(line, text))
        assert told is not None
        found.add(told, Case("test", "/x", b"x" * size))
    (only,) = found.kinds.values()
    assert (only.count, len(only.smallest.body)) == (3, 5)
    assert traceback("INFO: all is well") is None
