"""Commands whose standard streams are closed, full or gone: one sentence at most, and no traceback."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from support.processes import COMMAND

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")]

PROGRAM = shlex.join(COMMAND)
COMMANDS = ["generate Once --max-tokens 3", "models list", "--version", "--help", "chat"]


def run(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_output_ends_a_command_with_one_sentence(command: str) -> None:
    ended = run(f"{PROGRAM} {command} > /dev/full")
    assert ended.returncode == 1
    assert ended.stderr == "parallm-openai: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "2>/dev/full", ">&- 2>&- <&-"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_do_without_streams_that_they_do_not_need(command: str, closed: str) -> None:
    ended = run(f"{PROGRAM} {command} {closed}")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("streams", [">/dev/full 2>/dev/full", ">&- 2>&- <&-"])
def test_a_server_serves_though_nobody_can_read_what_it_says(tmp_path: Path, streams: str) -> None:
    place = tmp_path / "server"
    server = subprocess.Popen(["sh", "-c", f"exec {PROGRAM} serve demo --uds {place} {streams}"])
    transport = httpx.HTTPTransport(uds=str(place))
    try:
        while not place.exists():
            assert server.poll() is None
            time.sleep(0.1)
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=240) as client:
            answer = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] == 3
        server.terminate()
        assert server.wait(240) == -signal.SIGTERM
    finally:
        server.kill()
