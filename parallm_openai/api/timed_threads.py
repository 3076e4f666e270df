"""Runs Python code that may take too long, like the loops of a chat template, on threads that end in time."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
from collections.abc import Callable
from typing import Any

# They share the interpreter's lock: more of them at a time would not end sooner.
MOST_AT_A_TIME = 4
# An exception that is raised inside a finaliser or a callback is lost, so that another one must follow.
SECONDS_BETWEEN_TRIES = 0.2


class OutOfTime(BaseException):
    """Raised inside work whose time is up. It is no `Exception`, because the work could catch that as its own error."""


class TooBusy(Exception):
    """Other work kept all threads busy for the whole time that this work was given."""


class TimedThreads:
    """Runs each function on a new daemon thread, so that neither other work nor the exit waits for it."""

    def __init__(self, most: int = MOST_AT_A_TIME) -> None:
        self._free = asyncio.Semaphore(most)

    async def run(self, seconds: float, function: Callable[[], Any]) -> Any:
        """What the function returns or raises. Raises TimeoutError once `seconds` have passed, and ends it."""
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError as error:
            raise TooBusy from error
        work = _Work(function, self._free.release)
        try:
            async with asyncio.timeout(seconds):
                return await work.result
        finally:
            work.interrupt()


class _Work:
    """One function on its thread. The event loop waits for `result`; `ended` is called there when the thread ends."""

    def __init__(self, function: Callable[[], Any], ended: Callable[[], None]) -> None:
        self._function = function
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._through = False
        # Guards `_running`: nothing may be raised in the code that runs after the function.
        self._lock = threading.Lock()
        self._running = True
        self.result: asyncio.Future[Any] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="timed-work", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            ended()
            raise

    def interrupt(self) -> None:
        """End the function at its next line of Python, if it still runs."""
        if self._through:
            return
        if not self._thread.is_alive():
            self._deliver(None, OutOfTime())
            return
        with self._lock:
            if self._running:
                _raise_in(self._thread, OutOfTime)
        self._loop.call_later(SECONDS_BETWEEN_TRIES, self.interrupt)

    def _run(self) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            try:
                value = self._function()
            except BaseException as raised:
                error = raised
            with self._lock:
                self._running = False
            # An exception that was on its way must not interrupt the delivery.
            _raise_in(self._thread, None)
        except OutOfTime as raised:
            self._running = False
            error = raised
        with contextlib.suppress(RuntimeError):
            # The loop may be closed; then nobody waits any more.
            self._loop.call_soon_threadsafe(self._deliver, value, error)

    def _deliver(self, value: Any, error: BaseException | None) -> None:
        self._through = True
        self._ended()
        if self.result.done():
            return
        if error is None:
            self.result.set_result(value)
        elif isinstance(error, Exception):
            self.result.set_exception(error)
        else:
            self.result.set_exception(RuntimeError(f"the work was ended: {type(error).__name__}"))


def _raise_in(thread: threading.Thread, error: type[BaseException] | None) -> None:
    """Raise an error in a thread at its next line of Python; None takes back one that has not been raised yet."""
    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, None if error is None else ctypes.py_object(error))
