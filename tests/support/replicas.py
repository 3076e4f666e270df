"""`parallm-openai serve --replicas` as a process of its own, with the bundled model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from support.ports import free_ports
from support.processes import ROOT

KEY, ADMIN = "key-of-tests", "admin-of-tests"
# How Ray names the processes of a deployment.
TITLE = "ray::ServeReplica:parallm"


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `log` is what it has printed."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=240)

    def stats(self) -> dict[str, Any]:
        """The stats of every replica, by its name; none while there is no replica."""
        with self.client as client:
            answer = client.get("/v1/stats")
        if answer.status_code == 503:
            return {}
        replicas: dict[str, Any] = answer.raise_for_status().json()["replicas"]
        return replicas

    def running(self) -> int:
        return sum(self.running_by_replica())

    def running_by_replica(self) -> list[int]:
        numbers = [each["batching_stats"] for each in self.stats().values()]
        return [int(each["running"] + each["prefilling"] + each["waiting"]) for each in numbers]

    def count(self, name: str) -> int:
        """The ingress's own count of this name."""
        with self.client as client:
            lines = client.get("/metrics").raise_for_status().text.splitlines()
        return int(float(next(line.split()[-1] for line in lines if line.startswith(f"parallm:{name}_total "))))

    def processes(self, deployment: str = "Engine") -> list[psutil.Process]:
        every = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in every if " ".join(each.cmdline()).startswith(f"{TITLE}:{deployment}")]

    def kill_a_replica(self) -> None:
        self.processes()[0].send_signal(signal.SIGKILL)

    def wait_for_replicas(self, number: int, seconds: float = 120) -> None:
        wait_until(lambda: len(self.stats()) == number, f"{number} replicas", seconds)


def wait_until(reached: Any, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.2)


@contextmanager
def cluster(log: Path, *flags: str, replicas: int = 2) -> Iterator[Cluster]:
    port = free_ports(1)
    command = [sys.executable, "-m", "parallm_openai", "serve", "-m", "demo", "--replicas", str(replicas)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PARALLM_")}
    own |= {"PYTHONPATH": str(ROOT), "PARALLM_API_KEY": KEY, "PARALLM_ADMIN_KEY": ADMIN}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), *flags], env=own, stdout=output, stderr=subprocess.STDOUT
        )
    made = Cluster(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until(lambda: _serves(made), "the replicas to serve", 180)
        yield made
    finally:
        process.terminate()
        process.wait(60)


def _serves(made: Cluster) -> bool:
    assert made.process.poll() is None, made.log.read_text(errors="replace")[-4000:]
    return "Try:" in made.log.read_text(errors="replace")
