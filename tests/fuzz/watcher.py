"""What a server process looks like from outside while requests come in: alive, answering, of one size, silent."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import psutil

from fuzz.process import ServerProcess

SAMPLE_EVERY = 0.2
# Above what it began with, a process that is taken for one that would go on growing until the machine is full.
MEMORY_LIMIT = 3 * 2**30


@dataclass(frozen=True)
class Sample:
    at: float
    rss: int
    threads: int
    files: int
    processes: int


@dataclass(frozen=True)
class Pulse:
    """One answer of `/health`; `late` is how long the asking process itself was kept from running."""

    asked: float
    took: float
    late: float


@dataclass
class Watcher:
    """Watches one server process until it is told to stop or the process ends."""

    server: ServerProcess
    samples: list[Sample] = field(default_factory=list)
    pulses: list[Pulse] = field(default_factory=list)
    outgrown: bool = False

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._seen = self.server.start_of_requests
        self._asking = time.monotonic()
        command = [sys.executable, "-I", str(Path(__file__).with_name("pulse.py")), str(self.server.port)]
        self._pulse = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._read_pulse, self._sample)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._pulse.kill()
        for thread in self._threads:
            thread.join(10)

    def longest_freeze(self, since: float = 0.0) -> Pulse:
        """The longest answer of `/health` to a question of after `since`, one that is still open included.

        What the asking process was late by itself is taken off: then it was the machine that stood still.
        """
        waiting = Pulse(self._asking, max(0.0, time.monotonic() - self._asking - 2 * SAMPLE_EVERY), 0.0)
        pulses = list(takewhile(lambda pulse: pulse.asked + pulse.took >= since, reversed(self.pulses)))
        if self._pulse.poll() is None and self.server.alive:
            pulses.append(waiting)
        return max(pulses, key=lambda pulse: pulse.took, default=Pulse(since, 0.0, 0.0))

    def new_log(self) -> str:
        """What the server has written since this was last asked."""
        with self.server.log.open("rb") as file:
            file.seek(self._seen)
            text = file.read()
        self._seen += len(text)
        return text.decode("utf-8", "replace")

    @property
    def log_bytes(self) -> int:
        return self.server.log.stat().st_size - self.server.start_of_requests

    def _read_pulse(self) -> None:
        assert self._pulse.stdout is not None
        for line in self._pulse.stdout:
            asked, took, late = map(float, line.split())
            self.pulses.append(Pulse(asked, took, late))
            self._asking = time.monotonic()

    def _sample(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY) and self.server.alive:
            with contextlib.suppress(psutil.Error):
                self.samples.append(sample := self._sampled())
                if sample.rss > self.samples[0].rss + MEMORY_LIMIT:
                    self.outgrown = True
                    self.server.kill()

    def _sampled(self) -> Sample:
        own, *others = self.server.family()
        with own.oneshot():
            rss, threads, files = own.memory_info().rss, own.num_threads(), own.num_fds()
        for other in others:
            with contextlib.suppress(psutil.Error):
                rss += other.memory_info().rss
        return Sample(time.monotonic(), rss, threads, files, 1 + len(others))


def settled(samples: list[Sample], share: float) -> list[Sample]:
    """The samples of the last `share` of the time watched."""
    if not samples:
        return []
    start = samples[-1].at - share * (samples[-1].at - samples[0].at)
    return [sample for sample in samples if sample.at >= start]
