"""What is measured: servers of our own, started or found, and those of others."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

START_SECONDS = 300


class BenchError(Exception):
    """A server that cannot be measured, with the reason."""


@dataclass(frozen=True)
class Target:
    """A server to put load on. `settings` go to its /v1/configure before each run, `extra` into each body."""

    name: str
    url: str
    model: str
    settings: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        if self.settings:
            answer = httpx.post(f"{self.url}/v1/configure", params=self.settings, timeout=30)
            if answer.status_code != 200:
                raise BenchError(f"{self.name} refuses its settings: {answer.text}")

    def drafted(self) -> tuple[int, int]:
        """Tokens drafted and accepted since the server's start; zeros for a server that does not say."""
        try:
            numbers = httpx.get(f"{self.url}/v1/stats", timeout=30).json()["speculative_stats"]
            return numbers["drafted_tokens"], numbers["accepted_tokens"]
        except (httpx.HTTPError, KeyError, ValueError):
            return 0, 0


def first_model(url: str) -> str:
    """The first model that a server lists. Raises BenchError if it does not answer."""
    try:
        return str(httpx.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"])
    except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
        raise BenchError(f"{url} does not list its models: {error}") from error


def peer(spec: str) -> Target:
    """A `NAME=URL` or `NAME=URL#MODEL` peer. Raises BenchError for another form, or if nothing answers there."""
    name, _, address = spec.partition("=")
    url, _, model = address.partition("#")
    if not name or not url.startswith("http"):
        raise BenchError(f"--peer: must be NAME=URL or NAME=URL#MODEL, not {spec!r}")
    url = url.rstrip("/").removesuffix("/v1")
    try:
        # A peer whose model is given need not be able to list it.
        httpx.get(f"{url}/v1/models", timeout=30)
    except httpx.HTTPError as error:
        raise BenchError(
            f"the peer {name} does not answer at {url} ({error}): start it first, or leave out its --peer"
        ) from error
    return Target(name, url, model or first_model(url))


@contextmanager
def own_server(arguments: Sequence[str]) -> Iterator[str]:
    """Our server in a process of its own, on a free port; its URL. Raises BenchError if it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "parallm_openai", "serve", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"the server ended with status {process.returncode} before it listened")
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise BenchError(f"the server did not listen within {START_SECONDS} seconds")
