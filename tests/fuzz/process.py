"""The server under test: a process of its own, as a user starts it, with its log in a file."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
STARTING = 180.0


class ServerProcess:
    """`python -m parallm_openai serve` on the bundled pair and a free port, once it says where it listens."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "parallm_openai", "serve", "--model", "demo", "--port", "0", *arguments]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        self.port = self._wait_for_port()
        self.start_of_requests = log.stat().st_size

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        """The process and those that it has started."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self, seconds: float = 20) -> list[str]:
        """End it, by force where it does not end by itself; says what it left behind."""
        family = self.family()
        left: list[str] = []
        if self.alive:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                left.append(f"the server did not end within {seconds:g} seconds of SIGTERM")
                self.process.kill()
                self.process.wait()
        _, orphans = psutil.wait_procs(family[1:], timeout=3)
        for orphan in orphans:
            left.append(f"a process that the server started outlives it: {orphan.pid}")
            orphan.kill()
        return left

    def kill(self) -> None:
        for each in reversed(self.family()):
            each.kill()
        self.process.wait()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline:
            text = self.log.read_text(errors="replace")
            found = re.search(r"Serving \S+ at http://\S+:(\d+)/v1", text)
            if found:
                return int(found[1])
            assert self.alive, f"the server has ended with status {self.process.returncode}:\n{text[-2000:]}"
            time.sleep(0.05)
        self.kill()
        raise TimeoutError("the server did not start")
