"""Work that takes too long is given up in time, ended, and keeps nobody else and no exit waiting."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from parallm_openai.api.timed_threads import TimedThreads, TooBusy

SOON = 0.1


def forever() -> None:
    while True:
        pass


def forever_whatever_is_raised() -> None:
    while True:
        with contextlib.suppress(Exception):
            forever()


def running() -> int:
    return sum(thread.name == "timed-work" for thread in threading.enumerate())


async def ended() -> None:
    async with asyncio.timeout(20):
        while running():
            await asyncio.sleep(0.01)


def test_work_returns_and_raises_as_if_it_were_called() -> None:
    async def main() -> None:
        threads = TimedThreads()
        assert await threads.run(20, lambda: 6 * 7) == 42
        with pytest.raises(ZeroDivisionError):
            await threads.run(20, lambda: 1 // 0)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await threads.run(20, sys.exit)
        await ended()

    asyncio.run(main())


@pytest.mark.parametrize("work", [forever, forever_whatever_is_raised])
def test_a_loop_is_ended_when_its_time_is_up(work: Any) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await TimedThreads().run(SOON, work)
        await ended()

    asyncio.run(main())


def test_work_whose_caller_has_gone_is_ended() -> None:
    async def main() -> None:
        task = asyncio.create_task(TimedThreads().run(600, forever))
        while not running():
            await asyncio.sleep(0.01)
        task.cancel()
        await ended()

    asyncio.run(main())


def test_what_cannot_be_ended_is_given_up_all_the_same_and_keeps_its_thread() -> None:
    release = threading.Event()

    async def main() -> None:
        threads = TimedThreads(most=1)
        with pytest.raises(TimeoutError):
            await threads.run(SOON, release.wait)
        with pytest.raises(TooBusy):
            await threads.run(SOON, lambda: 1)
        release.set()
        assert await threads.run(20, lambda: 2) == 2
        await ended()

    asyncio.run(main())


def test_no_more_run_at_a_time_than_said() -> None:
    most, now, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    async def main() -> None:
        threads = TimedThreads(most=2)
        await asyncio.gather(*(threads.run(20, work) for _ in range(12)))
        await ended()

    asyncio.run(main())
    assert most == 2


def test_work_that_ends_just_as_its_time_is_up_does_no_harm() -> None:
    async def main() -> None:
        threads = TimedThreads()
        for _ in range(200):
            with contextlib.suppress(TimeoutError, TooBusy):
                assert await threads.run(0.002, lambda: time.sleep(0.002)) is None
        await ended()
        assert await threads.run(20, lambda: "well") == "well"

    asyncio.run(main())


def test_a_process_exits_whatever_still_runs() -> None:
    program = """
import asyncio, time
from parallm_openai.api.timed_threads import TimedThreads
try:
    asyncio.run(TimedThreads().run(0.1, lambda: time.sleep(600)))
except TimeoutError:
    print("given up")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == "given up\n"
