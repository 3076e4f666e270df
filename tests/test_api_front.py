"""The front door: which pages, names and keys come in, and that no client's conduct costs the others anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.errors import COMPLETION, assert_error
from support.servers import RunningServer, running_server

from parallm_openai.api.visitors import Visitors, host_of, is_loopback
from parallm_openai.settings import ServerSettings

# Every route that changes or generates something, with a request that it would carry out.
UNSAFE: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/configure?max_batch_size=16", {}),
    ("POST", "/v1/completions", {"json": COMPLETION}),
    (
        "POST",
        "/v1/chat/completions",
        {"json": {"model": "parallm-demo", "messages": [{"role": "user", "content": "x"}]}},
    ),
    ("POST", "/v1/responses", {"json": {"model": "parallm-demo", "input": "Hi", "max_output_tokens": 2}}),
    ("DELETE", "/v1/responses/resp_1", {}),
    ("POST", "/v1/generate", {"json": {"prompt": "Hi", "max_tokens": 2}}),
    ("POST", "/v1/generate_batch", {"json": {"prompts": ["Hi"], "max_tokens": 2}}),
    ("POST", "/tokenize", {"json": {"prompt": "Hi"}}),
]


def allowed(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-allow-")}


def preflight(client: httpx.Client, origin: str, **more: str) -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    return client.options("/v1/chat/completions", headers=asked | more)


# Web pages

FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "https://localhost.evil.example"},
    {"Origin": "http://localhost:80@evil.example"},
    {"Origin": "http://evil.example#http://localhost"},
    {"Origin": "http://127.0.0.1.evil.example:8080"},
    {"Origin": "chrome-extension://abcdef"},
    {"Origin": "loopback"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_foreign_page_may_not_do_anything(server: RunningServer, headers: dict[str, str]) -> None:
    with server.client as client:
        for method, path, more in UNSAFE:
            answer = client.request(method, path, headers=headers, **more)
            assert_error(answer, 403, "origin_not_allowed")
            assert not allowed(answer)


def test_a_foreign_page_reads_nothing_either(server: RunningServer) -> None:
    with server.client as client:
        for path in ("/v1/models", "/v1/stats", "/health", "/nowhere"):
            assert not allowed(client.get(path, headers={"Origin": "https://evil.example"}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "http://[::1]:5173"},
        {"Origin": "http://app.localhost:1"},
    ],
    ids=str,
)
def test_programs_and_pages_of_this_machine_may_do_everything(server: RunningServer, headers: dict[str, str]) -> None:
    with server.client as client, server.configured():
        for method, path, more in UNSAFE:
            answer = client.request(method, path, headers=headers, **more)
            assert answer.status_code in (200, 404), answer.text
            assert answer.headers.get("access-control-allow-origin") == headers.get("Origin")


def test_the_documented_curl_line_works_with_no_body_and_no_headers(server: RunningServer) -> None:
    with server.client as client:
        before = client.post("/v1/configure").json()["max_batch_size"]
        assert client.post(f"/v1/configure?max_batch_size={before}").json()["max_batch_size"] == before


def test_preflights_are_answered_for_allowed_origins_alone(server: RunningServer) -> None:
    private = {"Access-Control-Request-Private-Network": "true"}
    with server.client as client:
        answer = preflight(client, "http://localhost:3000", **private)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert answer.headers["access-control-allow-headers"] == "content-type"
        assert answer.headers["access-control-allow-private-network"] == "true"
        for origin in ("https://evil.example", "null"):
            refused = preflight(client, origin, **private)
            assert_error(refused, 403, "origin_not_allowed")
            assert not allowed(refused)


def test_errors_can_be_read_by_allowed_pages(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(settings=ServerSettings(api_keys=("key",), max_body_size=1024, graceful_timeout=1))
    monkeypatch.setattr(server.engine, "stats", lambda: 1 / 0)
    page, key = {"Origin": "http://localhost:3000"}, {"Authorization": "Bearer key"}
    with server.client as client:
        for answer, status in (
            (client.post("/v1/completions", json=COMPLETION, headers=page), 401),
            (client.post("/v1/configure", headers=page | key), 403),
            (client.get("/v1/nothing", headers=page | key), 404),
            (client.get("/v1/completions", headers=page | key), 405),
            (client.post("/v1/completions", json=COMPLETION | {"prompt": "x" * 2000}, headers=page | key), 413),
            (client.post("/v1/completions", json=COMPLETION | {"top_p": 9}, headers=page | key), 400),
            (client.get("/v1/stats", headers=page | key), 500),
        ):
            assert_error(answer, status)
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
            assert "x-request-id" in answer.headers


@pytest.mark.parametrize(
    ("origins", "let_in", "refused"),
    [
        (("*",), ["https://evil.example", "null", "app://x"], []),
        ((), [], ["http://localhost:3000", "null"]),
        (("null",), ["null"], ["http://localhost", "https://evil.example"]),
        (("https://Page.example:443",), ["https://page.example"], ["http://page.example", "https://page.example:444"]),
        (("http://localhost:3000",), ["http://localhost:3000"], ["http://localhost:3001", "http://127.0.0.1:3000"]),
        (
            ("loopback", "app://obsidian.md"),
            ["http://localhost:1", "app://obsidian.md"],
            ["app://other", "app://localhost"],
        ),
        (("vscode-webview://*",), ["vscode-webview://1c2-d3"], ["http://vscode-webview", "vscode-webview://a/b"]),
        (
            ("https://*.page.example",),
            ["https://a.page.example", "https://a.b.page.example"],
            [
                "https://page.example",
                "https://evilpage.example",
                "https://a.page.example.evil",
                "http://a.page.example",
            ],
        ),
    ],
    ids=str,
)
def test_origins_are_those_named(origins: tuple[str, ...], let_in: list[str], refused: list[str]) -> None:
    visitors = Visitors(ServerSettings(cors_origins=origins).cors_origins, ())
    assert [each for each in let_in if not visitors.allow_origin(each)] == []
    assert [each for each in refused if visitors.allow_origin(each)] == []


ORIGINS = st.text(max_size=60) | st.lists(
    st.sampled_from("localhost 127.0.0.1 [::1] 127.1 evil.example app. . : @ / # ? % \\ 80 3000 65536 -1".split())
    | st.text(max_size=2),
    max_size=5,
).map("".join)


@example("localhost:3000", "http://")
@example("[::1]", "https://")
@given(ORIGINS, st.sampled_from(["http://", "https://", "", "app://"]))
def test_no_text_passes_for_this_machine_that_a_strict_reading_would_not(text: str, scheme: str) -> None:
    """Compared with the standard library's reading of a URL."""
    from urllib.parse import urlsplit

    origin = scheme + text
    if Visitors(("loopback",), ()).allow_origin(origin):
        read = urlsplit(origin.lower())
        assert read.scheme in ("http", "https")
        assert is_loopback((read.hostname or "").removesuffix("."))
        assert (read.path, read.query, read.fragment, read.username) == ("", "", "", None)


# Names


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "127.0.0.1@evil.example",
        "",
        "[::2]",
    ],
)
def test_a_foreign_name_is_refused_on_every_route(server: RunningServer, host: str) -> None:
    with server.client as client:
        for method, path, more in [
            *UNSAFE,
            ("GET", "/health", {}),
            ("GET", "/docs", {}),
            ("OPTIONS", "/v1/models", {}),
        ]:
            assert_error(client.request(method, path, headers={"Host": host}, **more), 403, "host_not_allowed")
        own = {"Host": host, "Origin": f"http://{host}", "Access-Control-Request-Method": "POST"}
        assert not allowed(client.options("/v1/configure", headers=own))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.", "x.localhost:80", "127.0.0.1", "127.3.2.1:5", "[::1]:8080"]
)
def test_this_machines_own_names_are_served(server: RunningServer, host: str) -> None:
    with server.client as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("hosts", "let_in", "refused"),
    [
        (("llm.example",), ["llm.example", "LLM.example:80", "localhost"], ["a.llm.example", "evil.example"]),
        (("*.example",), ["a.example", "a.b.example:1"], ["example", "example.evil"]),
        (("*",), ["evil.example", "10.0.0.1"], []),
        (("[fe80::1]",), ["[FE80::1]:80"], ["[fe80::2]"]),
    ],
    ids=str,
)
def test_hosts_are_those_named(hosts: tuple[str, ...], let_in: list[str], refused: list[str]) -> None:
    from starlette.datastructures import Headers

    visitors = Visitors((), ServerSettings(allowed_hosts=hosts).allowed_hosts)
    for names, passes in ((let_in, True), (refused, False)):
        for name in names:
            assert (visitors.refusal(Headers({"host": name}), safe=True) is None) == passes, name


def test_its_own_pages_may_call_a_server_by_a_name_that_cannot_be_rebound() -> None:
    from starlette.datastructures import Headers

    def passes(host: str, *hosts: str, origin: str | None = None) -> bool:
        headers = Headers({"host": host, "origin": origin or f"http://{host}"})
        return Visitors((), hosts).refusal(headers, safe=False) is None

    assert passes("192.168.1.5:8080", "*")
    assert passes("llm.example", "llm.example", origin="https://llm.example")
    assert not passes("evil.example", "*")
    assert not passes("192.168.1.5:8080", "*", origin="http://192.168.1.5:8081")


@given(st.text(max_size=30))
def test_a_host_is_read_or_refused_but_never_raises(text: str) -> None:
    host = host_of(text)
    assert host is None or "/" not in host


# Keys


@pytest.fixture(scope="module")
def keyed() -> Iterator[RunningServer]:
    settings = ServerSettings(api_keys=("first", "second"), admin_keys=("root",), graceful_timeout=1)
    with running_server(settings=settings) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_an_admin_key_does_all_and_an_api_key_all_but_configure(keyed: RunningServer) -> None:
    with keyed.client as client:
        for headers in (
            bearer("first"),
            bearer("second"),
            bearer("root"),
            {"x-api-key": "second"},
            {"x-api-key": "root"},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 200
            assert client.get("/v1/stats", headers=headers).status_code == 200
        for headers in (bearer("root"), {"x-api-key": "root"}):
            assert client.post("/v1/configure", headers=headers).status_code == 200
        assert "admin key" in assert_error(
            client.post("/v1/configure", headers=bearer("first")), 403, "admin_key_required"
        )
        for path in ("/v1/configure", "/v1/completions", "/v1/responses/x", "/nowhere", "//v1/configure"):
            answer = assert_error(client.post(path), 401, "invalid_api_key")
            assert "didn't provide" in answer


@pytest.mark.parametrize(
    "header",
    [
        (b"Authorization", b"Bearer \xff\xfe"),
        (b"Authorization", b"Bearer first\xc3\xa9"),
        (b"Authorization", b"Bearer"),
        (b"Authorization", b"Basic first"),
        (b"Authorization", b"first"),
        (b"Authorization", b"Bearer first second"),
        (b"x-api-key", b"\xff"),
        (b"x-api-key", b"Bearer first"),
    ],
)
def test_a_wrong_key_of_any_bytes_is_a_401(keyed: RunningServer, header: tuple[bytes, bytes]) -> None:
    with keyed.client as client:
        assert_error(client.get("/v1/models", headers=[header]), 401, "invalid_api_key")


def test_with_api_keys_alone_nobody_may_configure(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(api_keys=("key",), graceful_timeout=1))
    with server.client as client:
        assert "--admin-key" in assert_error(client.post("/v1/configure?max_queue=1", headers=bearer("key")), 403)
        assert_error(client.post("/v1/configure", headers=bearer("other")), 401)
        assert server.engine.config.max_queue != 1


def test_with_an_admin_key_alone_everything_else_is_open(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(admin_keys=("root",), graceful_timeout=1))
    with server.client as client:
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200
        assert client.post("/v1/completions", json=COMPLETION, headers=bearer("none")).status_code == 200
        assert_error(client.post("/v1/configure"), 401)
        assert_error(client.post("/v1/configure", headers=bearer("none")), 401)
        assert client.post("/v1/configure", headers=bearer("root")).status_code == 200


@pytest.mark.parametrize(
    "bad",
    [
        *(
            {name: (key,)}
            for name in ("api_keys", "admin_keys")
            for key in ("", " ", "a b", "schlüssel", "a\n", "\x00")
        ),
        *(
            {"cors_origins": (each,)}
            for each in ("localhost:3000", "http://", "http://x/", "http://*x", "x", "http://a b")
        ),
        *({"allowed_hosts": (each,)} for each in ("http://x", "x:80", "a b", "*x", "x/y")),
        *({"served_model_names": (each,)} for each in ("", " ", "a\n")),
        *(
            {name: value}
            for name in ("request_timeout", "graceful_timeout")
            for value in (float("nan"), float("inf"), -1)
        ),
    ],
    ids=str,
)
def test_settings_that_would_serve_nobody_or_everybody_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServerSettings.model_validate(bad)
