"""`parallm-openai serve` as a process of its own, on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

# What a machine needs; the other variables are settings, and would change what is tested.
OF_MACHINE = ("PARALLM_MODELS", "PARALLM_BLAS", "PARALLM_COMPILER", "PARALLM_HUGE_PAGES")


@contextmanager
def serving(flags: Sequence[str] = ()) -> Iterator[str]:
    """The base URL of a server with these flags, which ends with the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "parallm_openai", "serve", "--port", str(port), "--log-level", "warning", *flags]
    own = {name: value for name, value in os.environ.items() if name in OF_MACHINE or not name.startswith("PARALLM_")}
    process = subprocess.Popen(command, env=own)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(40)


def model_at(url: str) -> str:
    """The name of the model that is served."""
    return str(httpx.get(f"{url}/models", timeout=60).raise_for_status().json()["data"][0]["id"])


def _wait(process: subprocess.Popen[bytes], health: str) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server has ended with status {process.returncode}")
        try:
            httpx.get(health, timeout=5).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the server did not start")
