"""A server started as a user starts it, for the clients in the folders beside this file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest


@dataclass(frozen=True)
class Served:
    """`url` ends in /v1; `model` is the name to send."""

    url: str
    model: str


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """The server at PARALLM_URL, or else the bundled model on a free port."""
    given = os.environ.get("PARALLM_URL")
    if given:
        yield _served(given.rstrip("/"))
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "parallm_openai", "serve", "--model", "demo", "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "warning", "--request-timeout", "60"])
    try:
        url = f"http://127.0.0.1:{port}/v1"
        _wait(process, f"http://127.0.0.1:{port}/health")
        yield _served(url)
    finally:
        process.terminate()
        process.wait(40)


def _wait(process: subprocess.Popen[bytes], health: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server has ended"
        try:
            httpx.get(health, timeout=5).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the server did not start")


def _served(url: str) -> Served:
    return Served(url, httpx.get(f"{url}/models", timeout=60).json()["data"][0]["id"])
