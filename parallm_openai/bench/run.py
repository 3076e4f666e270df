"""One run of a load on a target: closed loop (so many at a time) or open loop (so many a second)."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from parallm_openai.bench.load import Load, Request
from parallm_openai.bench.samples import Measurement, Sample
from parallm_openai.bench.targets import Client, RequestFailed, Target
from parallm_openai.simulation.trace import TraceRequest

Record = Callable[[list[TraceRequest]], None]
"""Takes what a run has sent, as a trace."""


def run_load(target: Target, load: Load, record: Record | None = None) -> Measurement:
    """Send the load to the target and wait for its end. An interrupt ends it with KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return asyncio.run(_cancelled_by_interrupts(_run(target, load, record)))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if _on_main_thread():
            signal.signal(signal.SIGINT, before)


async def _cancelled_by_interrupts(work: Coroutine[Any, Any, Measurement]) -> Measurement:
    """An exception raised in the middle of the loop would be logged with all its lines."""
    task = asyncio.current_task()
    assert task is not None
    if _on_main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    return await work


def _on_main_thread() -> bool:
    """Whether this thread is the one that may set handlers of signals."""
    return threading.current_thread() is threading.main_thread()


async def _run(target: Target, load: Load, record: Record | None) -> Measurement:
    requests = load.requests()
    samples = [Sample(long=request.long) for request in requests]
    async with target.client() as client:
        began, worked = time.perf_counter(), time.process_time()
        if load.rate is None:
            await _closed_loop(client, requests, samples, load.concurrency)
        else:
            await _open_loop(client, requests, samples, load)
        seconds, client_seconds = time.perf_counter() - began, time.process_time() - worked
    if record is not None:
        sent = [request for sample in samples if (request := sample.sent(began)) is not None]
        record(sorted(sent, key=lambda request: request.at))
    return Measurement.of(samples, seconds, None if target.shares_process else client_seconds)


async def _closed_loop(
    client: Client, requests: Sequence[Request], samples: Sequence[Sample], concurrency: int
) -> None:
    """A long prompt waits until all sent before it are being answered, so that it meets running streams.

    What has been sent is being answered or has ended at some time, so nothing waits for ever.
    """
    places = iter(range(len(requests)))

    async def worker(number: int) -> None:
        for place in places:
            samples[place].client = f"client-{number}"
            if requests[place].long and client.streams:
                for earlier in samples[:place]:
                    if not earlier.long:
                        await earlier.begun.wait()
            await _send(client, requests[place], samples[place])

    await asyncio.gather(*(worker(number) for number in range(concurrency)))


async def _open_loop(client: Client, requests: Sequence[Request], samples: Sequence[Sample], load: Load) -> None:
    """Requests at random times, `rate` a second on average, however busy the server is."""
    assert load.rate is not None
    rng = random.Random(load.seed)
    tasks: list[asyncio.Task[None]] = []
    for request, sample in zip(requests, samples, strict=True):
        if tasks:
            await asyncio.sleep(rng.expovariate(load.rate))
        tasks.append(asyncio.create_task(_send(client, request, sample)))
    await asyncio.gather(*tasks)


async def _send(client: Client, request: Request, sample: Sample) -> None:
    sample.start()
    try:
        await client.answer(request, sample)
    except RequestFailed as error:
        sample.end(str(error))
    else:
        sample.end()
