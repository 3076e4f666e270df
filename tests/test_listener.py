"""Where `serve` listens: by TLS, on a Unix domain socket, under the path of a proxy; and what it says of that."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.processes import ROOT, Served
from support.servers import RunningServer, demo_draft, demo_target, running_server
from typer.testing import CliRunner

from parallm_openai.cli import app
from parallm_openai.cli.announcement import Address, announce, describe
from parallm_openai.cli.listener import ListenError, check_tls, listening
from parallm_openai.settings import ServerSettings, TlsSettings

# Self-signed, and made for these tests alone; the password of the encrypted key is "secret".
CERTIFICATE, KEY, ENCRYPTED = (
    str(ROOT / "tests" / "support" / "tls" / name) for name in ("certificate.pem", "key.pem", "encrypted_key.pem")
)


# TLS


@pytest.mark.server
def test_a_certificate_makes_it_https() -> None:
    served = Served("--port", "0", "--ssl-certfile", CERTIFICATE, "--ssl-keyfile", KEY)
    try:
        assert served.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=CERTIFICATE)
        assert httpx.get(f"{served.url}/health", verify=trusting, timeout=240).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{served.url}/health", timeout=240)
        with pytest.raises(httpx.HTTPError):
            httpx.get(served.url.replace("https", "http"), timeout=240)
    finally:
        served.process.kill()


@pytest.mark.server
def test_clients_must_show_a_certificate_if_told_so() -> None:
    flags = ["--ssl-certfile", CERTIFICATE, "--ssl-keyfile", KEY, "--ssl-ca-certs", CERTIFICATE, "--ssl-cert-reqs", "2"]
    served = Served("--port", "0", *flags)
    try:
        context = ssl.create_default_context(cafile=CERTIFICATE)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{served.url}/health", verify=context, timeout=240)
        context.load_cert_chain(CERTIFICATE, KEY)
        assert httpx.get(f"{served.url}/health", verify=context, timeout=240).status_code == 200
    finally:
        served.process.kill()


def test_a_certificate_that_can_be_used_is_one() -> None:
    check_tls(TlsSettings())
    check_tls(TlsSettings(ssl_certfile=CERTIFICATE, ssl_keyfile=KEY))
    check_tls(TlsSettings(ssl_certfile=CERTIFICATE, ssl_keyfile=ENCRYPTED, ssl_keyfile_password="secret"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ssl_certfile": "/no/such.pem"}, "--ssl-certfile: /no/such.pem: No such file"),
        ({"ssl_certfile": CERTIFICATE, "ssl_keyfile": "/no/such.pem"}, "--ssl-keyfile: /no/such.pem: No such file"),
        ({"ssl_certfile": "/tmp"}, "--ssl-certfile: /tmp: Is a directory"),
        ({"ssl_certfile": CERTIFICATE}, "--ssl-keyfile must fit it"),
        ({"ssl_certfile": CERTIFICATE, "ssl_keyfile": CERTIFICATE}, "--ssl-keyfile must fit it"),
        ({"ssl_certfile": CERTIFICATE, "ssl_keyfile": ENCRYPTED}, "needs --ssl-keyfile-password"),
        (
            {"ssl_certfile": CERTIFICATE, "ssl_keyfile": ENCRYPTED, "ssl_keyfile_password": "wrong"},
            "needs --ssl-keyfile-password",
        ),
        ({"ssl_certfile": CERTIFICATE, "ssl_keyfile": KEY, "ssl_ca_certs": KEY}, "--ssl-ca-certs: "),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_starts(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ListenError, match=re.escape(said)) as raised:
        check_tls(TlsSettings(**settings))
    assert "wrong" not in str(raised.value)


# Unix domain sockets


@pytest.fixture
def path() -> Iterator[str]:
    # Longer paths than the system takes are usual among pytest's own.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield f"{folder}/llm.sock"


@pytest.mark.server
@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_socket_is_served_and_goes_with_the_server(path: str, how: signal.Signals, status: int) -> None:
    served = Served("--uds", path, "--api-key", "key")
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url=served.url, timeout=240) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/v1/models").status_code == 401
            body = {"prompt": "Hi", "max_tokens": 3}
            answer = client.post("/v1/completions", json=body, headers={"Authorization": "Bearer key"})
            assert answer.json()["usage"]["completion_tokens"] <= 3
            # Names of hosts are checked as on a loopback address.
            assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in served.output
        refused = CliRunner().invoke(app, ["serve", "--uds", path])
        assert f"--uds: another server listens on {path}" in refused.stderr
    finally:
        assert served.end(how) == status, served.output
    assert not Path(path).exists()


def test_a_socket_that_nobody_listens_on_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    with listening(ServerSettings(uds=path)) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert listener.getsockname() == path
    assert not Path(path).exists()


def test_nothing_but_a_socket_is_replaced(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ListenError, match="is a file, and no socket"), listening(ServerSettings(uds=path)):
        pass
    assert Path(path).read_text() == "precious"


def test_the_socket_of_another_server_that_has_taken_the_place_stays(path: str) -> None:
    with listening(ServerSettings(uds=path)) as listener:
        listener.close()
        Path(path).unlink()
        # Something else gets the number of the file that is gone, if nothing has it.
        Path(f"{path}.other").touch()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
    assert Path(path).is_socket()


# The path of a proxy


@pytest.fixture(scope="module")
def behind_proxy() -> Iterator[RunningServer]:
    settings = ServerSettings(root_path="/llm/", api_keys=("key",), admin_keys=("root",))
    with running_server(settings=settings) as running:
        yield running


@pytest.mark.server
@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_requests_come_with_the_prefix_or_without(behind_proxy: RunningServer, prefix: str) -> None:
    with behind_proxy.client as client:
        assert client.get(f"{prefix}/health").status_code == 200
        assert "<html" in client.get(f"{prefix}/").text
        assert client.get(f"{prefix}/page/icon.svg").status_code == 200
        # Whether a path needs a key is decided without the prefix.
        assert client.get(f"{prefix}/v1/models").status_code == 401
        client.headers["Authorization"] = "Bearer key"
        assert client.get(f"{prefix}/v1/models").status_code == client.get(f"{prefix}/models").status_code == 200
        assert client.post(f"{prefix}/v1/configure").status_code == 403
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]


@pytest.mark.server
def test_only_a_whole_part_of_a_path_is_the_prefix(behind_proxy: RunningServer) -> None:
    with behind_proxy.client as client:
        client.headers["Authorization"] = "Bearer key"
        assert client.get("/llmv1/models").status_code == 404
        assert client.get("/llm/llm/v1/models").status_code == 404
        # The page's links are relative.
        moved = client.get("/llm")
        assert (moved.status_code, moved.headers["location"]) == (308, "/llm/")
        assert "<html" in client.get("/llm/").text


# What is said


def test_every_address_of_the_machine_is_listed_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, address: str) -> None:
            self.address = address

    cards = {
        "lo": [Entry("127.0.0.1"), Entry("::1")],
        "en0": [Entry("192.0.2.7"), Entry("fe80::1%en0"), Entry("2001:db8::7"), Entry("00:16:3e:00:00:01")],
    }
    monkeypatch.setattr("psutil.net_if_addrs", lambda: cards)
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        address = Address.of(listener, secure=False)
    assert address.urls == (f"http://127.0.0.1:{port}", f"http://192.0.2.7:{port}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert Address.of(listener, secure=True).urls == (f"https://127.0.0.1:{listener.getsockname()[1]}",)


@pytest.mark.server
def test_the_start_says_what_is_served_and_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    with running_server(demo_draft(), max_batch_size=4, draft_length=3) as running:
        facts = describe(demo_target(), demo_draft(), running.engine)
    address = Address(("http://127.0.0.1:1", "http://192.0.2.7:1"))
    announce(address, "parallm-demo", facts, needs_key=False)
    said = capsys.readouterr().out
    assert "Serving parallm-demo at http://127.0.0.1:1/v1 (chat at http://127.0.0.1:1, " in said
    for line in (
        "also at  http://192.0.2.7:1",
        "context  8192 tokens",
        "batch    4 requests of 65536 tokens in all, at most",
        "drafts   by draft, or from the text so far and earlier answers, 3 tokens a step",
        "parallm-openai chat --url http://127.0.0.1:1\n",
    ):
        assert line in said
    assert re.search(r"model    parallm-demo: 3.5M parameters in float32 on \w", said)
    assert re.search(r"memory   16.4 MB of weights, caches up to \d+ MB", said)


def test_a_line_to_try_works_outside_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = tmp_path / "an environment" / "parallm-openai"
    command.parent.mkdir()
    command.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(command.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    announce(Address(("http://127.0.0.1:1",)), "parallm-demo", [], needs_key=False)
    assert f"'{command}' chat --url http://127.0.0.1:1\n" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(command.parent))
    announce(Address(("http://127.0.0.1:1",)), "parallm-demo", [], needs_key=False)
    assert "  parallm-openai chat --url http://127.0.0.1:1\n" in capsys.readouterr().out


@pytest.mark.server
@pytest.mark.parametrize(
    ("draft", "config", "said"),
    [
        (None, {}, "none: every step gives each request one token"),
        ("suffix", {}, "from the text so far and earlier answers, up to 7 tokens a step"),
        ("suffix", {"use_speculative_decoding": False}, "none: switched off"),
    ],
)
def test_the_start_says_how_it_drafts(draft: Any, config: dict[str, Any], said: str) -> None:
    with running_server(draft, **config) as running:
        assert dict(describe(demo_target(), None, running.engine))["drafts"] == said
