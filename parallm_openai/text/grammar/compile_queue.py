"""The order in which grammars are compiled: each gets a short time; one that needs more waits for the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from parallm_openai.text.grammar.token_grammar import GrammarBusyError, GrammarError
from parallm_openai.text.grammar.trial import TooSlowError

T = TypeVar("T")
# The most grammars that may wait for a longer time; each makes those behind it wait for seconds.
MOST_SLOW = 16


@dataclass
class _Job(Generic[T]):
    text: str
    result: Future[T] = field(default_factory=Future)


class CompileQueue(Generic[T]):
    """Runs `work(text, slow)` on `threads` threads of its own. `work` raises TooSlowError if a quick run is not enough.

    The newest job comes first, so that clients who flood the queue wait for each other. Only one thread does slow
    work, so that however much of it there is, the next quick job runs at once.
    """

    def __init__(self, work: Callable[[str, bool], T], threads: int) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._quick: list[_Job[T]] = []
        self._slow: list[_Job[T]] = []
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._run, args=(number == 0,), name="grammar", daemon=True).start()

    def put(self, text: str) -> Future[T]:
        job: _Job[T] = _Job(text)
        with self._changed:
            if self._closed:
                job.result.set_exception(GrammarError("the server is shutting down"))
                return job.result
            self._quick.append(job)
            self._changed.notify_all()
        return job.result

    def close(self) -> None:
        """Give up the jobs that wait; those that run end by themselves."""
        with self._changed:
            self._closed = True
            waiting = [*self._quick, *self._slow]
            self._quick, self._slow = [], []
            self._changed.notify_all()
        for job in waiting:
            job.result.set_exception(GrammarError("the server is shutting down"))

    def _run(self, takes_slow: bool) -> None:
        while (taken := self._next(takes_slow)) is not None:
            job, slow = taken
            try:
                job.result.set_result(self._work(job.text, slow))
            except TooSlowError as error:
                if slow:
                    job.result.set_exception(error)
                else:
                    self._wait_again(job)
            except BaseException as error:  # A panic of native code is no Exception.
                job.result.set_exception(error if isinstance(error, Exception) else GrammarError(str(error)[:200]))

    def _next(self, takes_slow: bool) -> tuple[_Job[T], bool] | None:
        with self._changed:
            while not (self._closed or self._quick or (takes_slow and self._slow)):
                self._changed.wait()
            if self._quick:
                return self._quick.pop(), False
            return (self._slow.pop(), True) if self._slow and takes_slow else None

    def _wait_again(self, job: _Job[T]) -> None:
        with self._changed:
            closed = self._closed
            if not closed and len(self._slow) < MOST_SLOW:
                self._slow.append(job)
                self._changed.notify_all()
                return
        busy = GrammarBusyError("it takes long to compile, and others do already")
        job.result.set_exception(GrammarError("the server is shutting down") if closed else busy)
