"""One replica in virtual time: the engine's thread, less the thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import simpy

from parallm_openai.engine.request import Request
from parallm_openai.engine.worker import LONGEST_WINDOW
from parallm_openai.simulation.core import Answer, SimulatedCore
from parallm_openai.simulation.trace import TraceRequest


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through the fleet. Times are in seconds since the trace began."""

    number: int
    asked: TraceRequest
    # Which of its session's requests it is, from 1 on.
    turn: int = 0
    sent_at: float = 0.0
    replica: int = -1
    first_token_at: float | None = None
    ended_at: float | None = None
    tokens: int = 0
    cached_tokens: int = 0

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.sent_at

    @property
    def between_tokens(self) -> float | None:
        """Seconds from one token to the next, on average."""
        if self.first_token_at is None or self.ended_at is None or self.tokens < 2:
            return None
        return (self.ended_at - self.first_token_at) / (self.tokens - 1)


Process = Generator[simpy.Event, Any, None]
Ended = Callable[[Job], None]
Made = Callable[[Job], tuple[Request, Answer]]
"""What a job is to the engine."""


class ExactReplica:
    """Runs the engine's own step for whatever is submitted."""

    def __init__(self, env: simpy.Environment, core: SimulatedCore, made: Made, ended: Ended) -> None:
        self._env, self._core, self._made, self._ended = env, core, made, ended
        self._inbox: list[tuple[Request, Answer]] = []
        self._jobs: dict[int, Job] = {}
        self._arrival = env.event()
        env.process(self._run())

    def submit(self, job: Job) -> None:
        request, answer = self._made(job)
        self._jobs[request.id] = job
        self._inbox.append((request, answer))
        if not self._arrival.triggered:
            self._arrival.succeed()

    def _run(self) -> Process:
        core = self._core
        while True:
            if core.idle and not self._inbox:
                yield self._next_arrival()
                yield from self._batching_window()
            core.clock.now = self._env.now
            for request, answer in self._inbox:
                core.submit(request, answer)
            self._inbox.clear()
            emitted = core.advance()
            yield self._env.timeout(core.clock.now - self._env.now)
            for each in emitted:
                job = self._jobs[each.request]
                job.tokens += each.tokens
                job.cached_tokens += each.cached
                if job.first_token_at is None and each.tokens:
                    job.first_token_at = each.at
                if each.ended:
                    job.ended_at = each.at
                    del self._jobs[each.request]
                    self._ended(job)

    def _next_arrival(self) -> simpy.Event:
        if self._arrival.triggered:
            self._arrival = self._env.event()
        return self._arrival

    def _batching_window(self) -> Process:
        """As the engine's thread does: wait for more requests until none has come for a while, or it is full."""
        timeout = self._core.config.batch_timeout_ms / 1000
        deadline = self._env.now + LONGEST_WINDOW * timeout
        while len(self._inbox) < self._core.config.max_batch_size and self._env.now < deadline:
            arrival = self._next_arrival()
            yield arrival | self._env.timeout(min(timeout, deadline - self._env.now))
            if not arrival.triggered:
                return
