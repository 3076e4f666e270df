"""The page at `/` and the documentation: what is served, to whom, and that nothing else is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.errors import assert_error
from support.servers import RunningServer, running_server

from parallm_openai.api.page import FOLDER
from parallm_openai.settings import ServerSettings

FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())
PAGES = ["/", "/docs"]
READABLE = [*PAGES, "/openapi.json", *(f"/page/{name}" for name in FILES)]
KINDS = {".html": "text/html", ".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def keyed() -> Iterator[RunningServer]:
    with running_server(settings=ServerSettings(api_keys=("key",), graceful_timeout=1)) as running:
        yield running


def policy(answer: httpx.Response) -> dict[str, list[str]]:
    directives = [part.split() for part in answer.headers["content-security-policy"].split(";")]
    return {name: sources for name, *sources in directives}


@pytest.mark.parametrize("path", READABLE)
def test_everybody_may_read_the_page_where_a_key_is_set(keyed: RunningServer, path: str) -> None:
    with keyed.client as client:
        whole, head = client.get(path), client.head(path)
        assert whole.status_code == head.status_code == 200
        assert head.content == b""
        assert head.headers["content-length"] == str(len(whole.content))
        assert whole.content
    if (kind := KINDS.get(Path(path).suffix)) is not None:
        assert kind in whole.headers["content-type"].partition(";")[0]


def test_the_api_itself_still_asks_for_the_key(keyed: RunningServer) -> None:
    with keyed.client as client:
        for path in ("/v1/models", "/v1/stats", "/page", "/pages", "/docs/x", "/page/../v1/models", "/redoc"):
            # A path of dots reaches the server as it is.
            target = httpx.URL(keyed.url).copy_with(raw_path=path.encode())
            assert client.get(target).status_code in (401, 404), path
        assert_error(client.get("/v1/models"), 401, "invalid_api_key")


@pytest.mark.parametrize("path", [*PAGES, "/page/js/main.js"])
def test_a_browser_is_told_to_run_and_load_nothing_else(server: RunningServer, path: str) -> None:
    with server.client as client:
        answer = client.get(path)
    allowed = policy(answer)
    assert allowed["default-src"] == ["'none'"]
    assert {name for name, sources in allowed.items() if sources not in (["'none'"], ["'self'"])} == {"img-src"}
    assert allowed["img-src"] == ["'self'", "data:"]
    assert allowed["frame-ancestors"] == allowed["form-action"] == allowed["base-uri"] == ["'none'"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_the_pages_hold_no_inline_code_and_name_files_that_are_there(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)
    links = re.findall(r'(?:href|src)="([^"#]+)"', text)
    assert len(links) >= 4
    for link in links:
        assert link == "./" or (FOLDER / link.removeprefix("page/")).is_file(), link


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("js/")])
def test_modules_import_files_that_are_there(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    for imported in re.findall(r'^(?:import|export) .*from "([^"]+)"', text, re.MULTILINE):
        assert (FOLDER / name).parent.joinpath(imported).is_file(), imported


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("vendor/")])
def test_our_own_files_name_no_other_server(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}


@pytest.mark.parametrize(
    "path",
    [
        "/page/../pyproject.toml",
        "/page/../../pyproject.toml",
        "/page/%2e%2e/api/page.py",
        "/page/..%2f..%2fpyproject.toml",
        "/page/js/../../../settings.py",
        "/page//etc/passwd",
        "/page/%00",
        "/page/js",
        "/page/",
        "/page/" + "x" * 300,
        "/page/js/main.js/x",
    ],
)
def test_nothing_outside_the_folder_is_served(server: RunningServer, path: str) -> None:
    with server.client as client:
        assert_error(client.get(httpx.URL(server.url).copy_with(raw_path=path.encode())), 404)


def test_only_reading_is_allowed(server: RunningServer) -> None:
    with server.client as client:
        for path in ("/", "/docs", "/page/js/main.js"):
            assert_error(client.post(path), 405)


def test_a_file_that_the_browser_has_is_not_sent_again(server: RunningServer) -> None:
    with server.client as client:
        first = client.get("/page/js/main.js")
        assert first.headers["cache-control"] == "no-cache"
        again = client.get("/page/js/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"


def test_the_page_may_call_its_own_server_and_no_other_page_may(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(settings=ServerSettings(cors_origins=(), graceful_timeout=1))
    body = {"model": server.model.name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    with server.client as client:
        own = client.post("/v1/chat/completions", json=body, headers={"Origin": server.url})
        assert own.status_code == 200
        other = client.post("/v1/chat/completions", json=body, headers={"Origin": "https://evil.example"})
        assert_error(other, 403, "origin_not_allowed")
