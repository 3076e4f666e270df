"""The one thread that owns MLX."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import psutil

from parallm_openai.engine.request import FinishReason, Output, Request
from parallm_openai.engine.row import describe
from parallm_openai.engine.step import EngineCore
from parallm_openai.engine.timeline import Timeline
from parallm_openai.settings import EngineConfig

log = logging.getLogger(__name__)

# An engine that has been idle for so long gives back the memory that rows were in.
IDLE_SECONDS = 10.0
# The batching window at its longest, in timeouts: however steadily requests come, the first waits no longer.
LONGEST_WINDOW = 8

Deliver = Callable[[list[Output]], None]


class QueueFullError(Exception):
    """Too many requests wait already."""


class EngineStoppedError(Exception):
    """The engine is shutting down or has failed to start."""


@dataclass(frozen=True)
class _Submit:
    request: Request


@dataclass(frozen=True)
class _Cancel:
    request_id: int
    reason: FinishReason


@dataclass(frozen=True)
class _Call:
    work: Callable[[], None]


@dataclass(frozen=True)
class _Stop:
    pass


_Command = _Submit | _Cancel | _Call | _Stop


class Engine:
    """Runs an `EngineCore` on a thread of its own; every method may be called from any thread.

    `build` makes the core on that thread, so that all MLX work happens there. `deliver`
    is called on it with each step's outputs. If the thread itself fails, every request ends with
    an error, `failure` says why, and `on_failure` is called on it.
    """

    def __init__(
        self, build: Callable[[], EngineCore], deliver: Deliver, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._deliver = deliver
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._unfinished: set[int] = set()
        self._accepting = True
        self._thread = threading.Thread(target=self._run, args=(build,), name="parallm-engine", daemon=True)
        self._started = threading.Event()
        self.failure: BaseException | None = None
        self._thread.start()
        self._wait_for_start()
        # A thread inside MLX must not outlive the interpreter.
        atexit.register(self.stop)

    def _wait_for_start(self) -> None:
        self._started.wait()
        if self.failure is not None:
            # The caller may exit, and a thread that is still inside MLX would abort the process.
            self._thread.join()
            raise self.failure

    @property
    def config(self) -> EngineConfig:
        return self.core.config

    def configure(self, **changes: Any) -> EngineConfig:
        """Change the running engine's settings from its next step on; returns all of them.

        Raises pydantic.ValidationError, and changes nothing, when any value is bad.
        """
        with self._lock:
            merged = {**self.core.config.model_dump(), **changes}
            self.core.config = EngineConfig.model_validate(merged)
            return self.core.config

    def submit(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError or EngineStoppedError."""
        self.submit_all((request,))

    def submit_all(self, requests: Sequence[Request]) -> None:
        """Queue several requests, all or none. Raises QueueFullError or EngineStoppedError."""
        with self._lock:
            self._check_accepting()
            if len(self._unfinished) + len(requests) > self.capacity:
                raise QueueFullError(f"{len(self._unfinished)} requests are running or waiting already")
            self._unfinished.update(request.id for request in requests)
        for request in requests:
            self._inbox.put(_Submit(request))

    def call(self, work: Callable[[], None]) -> None:
        """Have the engine's thread do something else with MLX before its next step. Raises EngineStoppedError.

        What `work` raises is logged, and nobody hears of it.
        """
        with self._lock:
            self._check_accepting()
        self._inbox.put(_Call(work))

    def _check_accepting(self) -> None:
        if self.failure is not None:
            raise EngineStoppedError("the engine has failed")
        if not self._accepting:
            raise EngineStoppedError("the engine is shutting down")

    @property
    def capacity(self) -> int:
        """How many requests may run and wait together."""
        return self.core.config.max_batch_size + self.core.config.max_queue

    def cancel(self, request_id: int, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Free the request's row before the next step; harmless when it has ended."""
        self._inbox.put(_Cancel(request_id, reason))

    def stats(self) -> dict[str, Any]:
        core = self.core
        report = core.stats.report()
        report["batching_stats"] |= {
            "running": len(core.scheduler.decoding),
            "prefilling": len(core.scheduler.prefilling),
            "waiting": len(core.scheduler.waiting),
            "max_batch_size": core.config.max_batch_size,
            "max_queue": core.config.max_queue,
        }
        report["speculative_stats"] |= {
            "drafter": core.drafter.name,
            "enabled": core.scheduler.can_draft and core.config.use_speculative_decoding,
            **core.scheduler.common.draft_length.report(),
        }
        report["prefix_cache"] = core.scheduler.prefixes.report()
        report["memory"] = memory()
        return report

    @property
    def timeline(self) -> Timeline:
        """The last steps, row by row."""
        return self.core.timeline

    @property
    def unfinished(self) -> int:
        return len(self._unfinished)

    def refuse_new(self) -> None:
        """Take no more requests; those running go on."""
        with self._lock:
            self._accepting = False

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def begin_stop(self) -> None:
        """Have whatever runs cancelled and the thread end, without waiting for the step that it is in."""
        self.refuse_new()
        self._inbox.put(_Stop())

    def stop(self) -> None:
        """Cancel whatever runs and end the thread; harmless when it has ended."""
        atexit.unregister(self.stop)
        self.begin_stop()
        self._thread.join()

    # The engine's thread

    def _run(self, build: Callable[[], EngineCore]) -> None:
        try:
            self._work(build)
        finally:
            # Left to the thread's own end, MLX would take its streams down while the interpreter exits.
            mx.clear_streams()

    def _work(self, build: Callable[[], EngineCore]) -> None:
        try:
            self.core = build()
            self.core.deliver = self._hand_over
        except BaseException as error:
            self.failure = error
            return
        finally:
            self._started.set()
        try:
            while self._take_commands():
                if not self.core.idle:
                    self._hand_over(self._step())
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The thread is at its end, or waits for another rank that is: nobody may wait for it any longer."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
            unfinished = sorted(self._unfinished)
        log.critical("the engine has failed", exc_info=error)
        message = f"the engine has failed: {describe(error)}"
        self._hand_over([Output(id, finish_reason=FinishReason.ERROR, error=message) for id in unfinished])
        self._on_failure()

    def _step(self) -> list[Output]:
        try:
            return self.core.step()
        except Exception as error:
            if not self.core.recovers:
                raise
            log.exception("an engine step failed; every request ends with an error")
            return self.core.fail_all(describe(error))

    def _take_commands(self) -> bool:
        """Carry out what has arrived, waiting for something when idle; False at the end."""
        if self.core.idle and not (self._carry_out(self._next_command()) and self._fill_batching_window()):
            return False
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return True
            if not self._carry_out(command):
                return False

    def _next_command(self) -> _Command:
        """The next command for an idle engine, which frees its buffers if none comes for a while."""
        try:
            return self._inbox.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            self.core.release()
            return self._inbox.get()

    def _fill_batching_window(self) -> bool:
        """Wait for more requests to share the first steps, until none has come for `batch_timeout_ms`.

        False at the end.
        """
        if not self.core.scheduler.waiting:
            return True
        timeout = self.core.config.batch_timeout_ms / 1000
        deadline = time.monotonic() + LONGEST_WINDOW * timeout
        while len(self.core.scheduler.waiting) < self.core.config.max_batch_size:
            try:
                command = self._inbox.get(timeout=max(0.0, min(timeout, deadline - time.monotonic())))
            except queue.Empty:
                break
            if not self._carry_out(command):
                return False
        return True

    def _carry_out(self, command: _Command) -> bool:
        match command:
            case _Submit(request):
                self._hand_over(self.core.add(request))
            case _Cancel(request_id, reason):
                self._hand_over(self.core.cancel(request_id, reason))
            case _Call(work):
                self._do(work)
            case _Stop():
                self._hand_over(self.core.cancel_all())
                return False
        return True

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("work between two steps has failed")

    def _hand_over(self, outputs: list[Output]) -> None:
        if not outputs:
            return
        ended = [output.request_id for output in outputs if output.finish_reason is not None]
        if ended:
            with self._lock:
                self._unfinished.difference_update(ended)
        try:
            self._deliver(outputs)
        except Exception:
            log.exception("outputs could not be delivered")


def memory() -> dict[str, int]:
    """Bytes: what MLX's arrays take now, took at most, and left behind for the next; and what the process takes."""
    return {
        "active_bytes": mx.get_active_memory(),
        "peak_bytes": mx.get_peak_memory(),
        "cache_bytes": mx.get_cache_memory(),
        "resident_bytes": psutil.Process().memory_info().rss,
    }
