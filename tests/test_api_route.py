"""Bodies pass one place: what cannot be read is refused there, by the name of its field."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import RunningServer

from parallm_openai.api import body
from parallm_openai.api.errors import ApiError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=JSON, ascii=st.booleans(), indent=st.sampled_from([None, 2]))
def test_json_is_read_as_it_is(value: Any, ascii: bool, indent: int | None) -> None:
    assert body.parse(json.dumps(value, ensure_ascii=ascii, indent=indent).encode()) == value


BAD = {
    "half of a pair": rb'"\ud800"',
    "the other half": rb'"\ude00 x"',
    "a half as a key": rb'{"\ud800": 1}',
    "not a number": b"NaN",
    "infinity": b"-Infinity",
    "a float too large": b"1e999",
    "an integer too long": b"1" * 5000,
    "lists too deep": b"[" * 300 + b"]" * 300,
    "objects too deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "bytes that are no text": b'"\xff\xfe"',
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("before", [b"", b'"first": {"b": [1, "}, \\" {"]}, ', b'"first": 1,\n  '])
def test_what_is_no_json_names_its_field(kind: str, before: bytes) -> None:
    with pytest.raises(ApiError) as found:
        body.parse(b"{" + before + b'"field": [' + BAD[kind] + b'], "last": 2}')
    detail = found.value.body["error"]
    assert found.value.status == 400
    assert str(detail["param"]).startswith("field")
    assert len(str(detail["message"])) < 300


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a"', b"[1,]", b'{"a":1} x', b"\xef\xbb\xbf{}", "{}".encode("utf-16")])
def test_what_is_cut_or_written_otherwise_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError) as found:
        body.parse(raw)
    assert found.value.body["error"]["code"] == "invalid_json"


def test_a_body_of_too_many_values_is_not_even_read() -> None:
    with pytest.raises(ApiError, match="values") as found:
        body.parse(b'{"model": "x", "messages": [' + b"1," * body.MAX_VALUES + b"1]}")
    assert found.value.body["error"]["param"] == "messages"


@pytest.mark.slow
def test_a_body_of_too_many_fields_is_one_error() -> None:
    with pytest.raises(ApiError, match="300000 fields"):
        body.parse(json.dumps({f"k{n}": n for n in range(300_000)}).encode())


def test_an_object_of_too_many_fields_within_a_body_is_one_error_too() -> None:
    crowded = {f"k{n}": n for n in range(body.MAX_INNER_FIELDS + 1)}
    with pytest.raises(ApiError, match="more than 4096 fields") as found:
        body.parse(json.dumps({"model": "x", "options": [{"a": crowded}]}).encode())
    assert found.value.body["error"]["param"] == "options"
    crowded.popitem()
    assert body.parse(json.dumps({"options": crowded, "more": {"x": 1}}).encode())["options"] == crowded


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/generate": {"prompt": "Hi"},
    "/v1/generate_batch": {"prompts": ["Hi"]},
    "/tokenize": {"prompt": "Hi"},
    "/v1/chat/completions/render": {"messages": [{"role": "user", "content": "Hi"}]},
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("kind", ["half of a pair", "not a number", "lists too deep", "an integer too long"])
def test_every_route_refuses_it(server: RunningServer, path: str, kind: str) -> None:
    field = next(iter(ROUTES[path]))
    raw = json.dumps({"model": "parallm-demo", **ROUTES[path]}).replace('"Hi"', BAD[kind].decode())
    with server.client as client:
        answer = client.post(path, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


LISTS = {
    "/v1/chat/completions": ["messages", "tools", "stop_token_ids"],
    "/v1/completions": ["prompt"],
    "/v1/responses": ["input", "tools", "include"],
}


@pytest.mark.parametrize(("path", "field"), [(path, field) for path, fields in LISTS.items() for field in fields])
def test_a_long_list_of_junk_is_one_error(server: RunningServer, path: str, field: str) -> None:
    raw = json.dumps({"model": "parallm-demo", **ROUTES[path], field: [1.5] * 300_000})
    with server.client as client:
        answer = client.post(path, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)
    assert len(answer.content) < 1000


def test_more_sequences_than_ever_fit_are_refused_for_good(server: RunningServer) -> None:
    with server.client as client:
        for path, asked in (
            ("/v1/completions", {"prompt": ["a"] * 2000}),
            ("/v1/generate_batch", {"prompts": ["a"] * 2000}),
        ):
            answer = client.post(path, json={"model": "parallm-demo", **asked} if "batch" not in path else asked)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"].startswith("prompt")
    server.wait_until_idle()


def test_a_batch_with_what_is_no_text_starts_nothing(server: RunningServer) -> None:
    raw = json.dumps({"prompts": ["Once upon"] * 100 + ["\ud800"], "max_tokens": 4000})
    with server.client as client:
        answer = client.post("/v1/generate_batch", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert server.active() == 0


def test_many_large_bodies_at_once_are_bounded(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    bodies = server.http.config.app.state.bodies  # type: ignore[union-attr]
    bodies.limit = 50_000
    with server.client as client:
        ask = {"model": "parallm-demo", "prompt": "a" * 60_000}
        assert client.post("/v1/completions", json=ask).status_code == 429
        assert client.post("/v1/completions", json=ask | {"prompt": "a", "max_tokens": 1}).status_code == 200
    assert bodies.held == 0


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    start_server: Callable[..., RunningServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"model": "par'
        )
        time.sleep(0.2)
    with server.client as client:
        assert client.get("/health").status_code == 200
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
