"""The engine's thread and its bridge to asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from pydantic import ValidationError
from support import tiny
from support.tiny import greedy, reference

from parallm_openai.engine import worker
from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.engine.request import FinishReason, Output
from parallm_openai.engine.step import EngineCore
from parallm_openai.engine.worker import Engine, EngineStoppedError, QueueFullError


class Outbox:
    def __init__(self) -> None:
        self.outputs: dict[int, list[Output]] = {}
        self.ended: dict[int, threading.Event] = {}

    def __call__(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.outputs.setdefault(output.request_id, []).append(output)
            if output.finish_reason is not None:
                self.ended.setdefault(output.request_id, threading.Event()).set()

    def wait(self, request_id: int) -> list[Output]:
        assert self.ended.setdefault(request_id, threading.Event()).wait(30)
        return self.outputs[request_id]

    def tokens(self, request_id: int) -> list[int]:
        return [token for output in self.wait(request_id) for token in output.tokens]


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def engine(outbox: Outbox) -> Iterator[Engine]:
    engine = Engine(lambda: tiny.core(max_batch_size=4, max_queue=4), outbox)
    yield engine
    engine.stop()


def test_requests_from_many_threads_all_end_with_their_own_tokens(engine: Engine, outbox: Outbox) -> None:
    requests = [greedy([n + 1, 2], 10) for n in range(8)]
    threads = [threading.Thread(target=engine.submit, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request in requests:
        assert outbox.tokens(request.id) == reference(request)
    assert engine.unfinished == 0


def test_one_request_too_many_is_refused_and_the_others_go_on(engine: Engine, outbox: Outbox) -> None:
    requests = [greedy([n + 1], 300) for n in range(8)]
    for request in requests:
        engine.submit(request)
    with pytest.raises(QueueFullError):
        engine.submit(greedy([1], 1))
    for request in requests:
        engine.cancel(request.id)
        assert outbox.wait(request.id)[-1].finish_reason is FinishReason.CANCELLED


def test_a_bad_setting_is_refused_whole(engine: Engine) -> None:
    before = engine.config
    with pytest.raises(ValidationError):
        engine.configure(max_batch_size=8, batch_timeout_ms=-1)
    with pytest.raises(ValidationError):
        engine.configure(no_such_setting=1)
    assert engine.config == before
    assert engine.configure(max_batch_size=8).max_batch_size == 8


def test_an_idle_engine_waits_for_company(outbox: Outbox) -> None:
    engine = Engine(lambda: tiny.core(batch_timeout_ms=2000, max_batch_size=2), outbox)
    first, second = greedy([1], 5), greedy([2], 5)
    engine.submit(first)
    time.sleep(0.05)
    assert not outbox.outputs, "the first request should still be waiting"
    engine.submit(second)
    outbox.wait(first.id)
    outbox.wait(second.id)
    assert engine.stats()["batching_stats"]["avg_batch_size"] == 2
    engine.stop()


@pytest.mark.slow
def test_each_newcomer_is_given_time_for_another_but_the_first_does_not_wait_for_ever(outbox: Outbox) -> None:
    engine = Engine(lambda: tiny.core(batch_timeout_ms=100), outbox)
    requests = [greedy([n + 1], 2) for n in range(16)]
    for request in requests:
        engine.submit(request)
        time.sleep(0.06)
    for request in requests:
        outbox.wait(request.id)
    assert 4 <= engine.stats()["batching_stats"]["max_batch_size_seen"] < 16
    engine.stop()


def test_an_engine_that_stays_idle_frees_the_buffers_of_rows(
    engine: Engine, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.02)
    for _ in range(2):
        batch, request = engine.core.scheduler.common.decoding, greedy([1, 2], 4)
        caches = batch.caches
        engine.submit(request)
        assert outbox.tokens(request.id) == reference(request)
        deadline = time.monotonic() + 10
        while batch.caches is caches:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_stopping_ends_what_runs_and_refuses_what_comes(outbox: Outbox) -> None:
    engine = Engine(lambda: tiny.core(), outbox)
    request = greedy([1], 4000)
    engine.submit(request)
    engine.stop()
    assert outbox.wait(request.id)[-1].finish_reason is FinishReason.CANCELLED
    with pytest.raises(EngineStoppedError):
        engine.submit(greedy([1], 1))


def test_a_step_that_breaks_ends_every_request_with_an_error_and_the_engine_lives(
    engine: Engine, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, later = greedy([1], 50), greedy([2], 5)
    with monkeypatch.context() as patch:
        patch.setattr(engine.core, "step", lambda: (_ for _ in ()).throw(RuntimeError("broken")))
        engine.submit(request)
        last = outbox.wait(request.id)[-1]
    assert last.finish_reason is FinishReason.ERROR
    assert "broken" in (last.error or "")
    engine.submit(later)
    assert outbox.tokens(later.id) == reference(later)


def test_a_core_that_cannot_be_built_fails_the_start() -> None:
    def build() -> Any:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        Engine(build, lambda _: None)


@pytest.fixture
def async_engine(monkeypatch: pytest.MonkeyPatch) -> AsyncEngine:
    monkeypatch.setattr("parallm_openai.engine.async_engine.build_core", lambda model, config, draft: tiny.core())
    return AsyncEngine(_Loaded(), tiny.core().config)  # type: ignore[arg-type]


class _Loaded:
    vocab_size = tiny.VOCAB


def test_streams_end_after_their_last_output(async_engine: AsyncEngine) -> None:
    async def scenario() -> None:
        requests = [greedy([n + 1], 12) for n in range(5)]
        streams = async_engine.open(requests)

        async def read(stream: Any) -> list[int]:
            return [token async for output in stream for token in output.tokens]

        for request, tokens in zip(requests, await asyncio.gather(*map(read, streams)), strict=True):
            assert tokens == reference(request)
        await async_engine.shutdown(5)

    asyncio.run(scenario())


def test_a_cancelled_stream_ends(async_engine: AsyncEngine) -> None:
    async def scenario() -> None:
        [stream] = async_engine.open([greedy([1], 4000)])
        await anext(stream)
        stream.cancel()
        stream.cancel()
        last = [output async for output in stream][-1]
        assert last.finish_reason is FinishReason.CANCELLED
        await async_engine.shutdown(5)

    asyncio.run(scenario())


def test_shutdown_lets_running_requests_finish(async_engine: AsyncEngine) -> None:
    async def scenario() -> None:
        request = greedy([1], 60)
        [stream] = async_engine.open([request])
        closing = asyncio.create_task(async_engine.shutdown(30))
        tokens = [token async for output in stream for token in output.tokens]
        assert tokens == reference(request)
        await closing
        with pytest.raises(EngineStoppedError):
            async_engine.open([greedy([1], 1)])

    asyncio.run(scenario())


def test_shutdown_cancels_what_outlasts_its_timeout(async_engine: AsyncEngine) -> None:
    async def scenario() -> None:
        [stream] = async_engine.open([greedy([1], 4000)])
        await anext(stream)
        await async_engine.shutdown(0.05)
        assert [output async for output in stream][-1].finish_reason is FinishReason.CANCELLED

    asyncio.run(scenario())


class Panic(BaseException):
    """As native code raises it: no Exception."""


def test_a_thread_that_fails_ends_every_request_and_says_so(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    engine = Engine(lambda: tiny.core(max_batch_size=2), outbox, told.set)
    requests = [greedy([n + 1], 2000) for n in range(4)]
    for request in requests:
        engine.submit(request)
    while not outbox.outputs:
        time.sleep(0.005)
    monkeypatch.setattr(engine.core, "_take_outputs", lambda: 1 / 0)
    monkeypatch.setattr(engine.core, "fail_all", lambda error: 1 / 0)
    for request in requests:
        last = outbox.wait(request.id)[-1]
        assert last.finish_reason is FinishReason.ERROR
        assert "ZeroDivisionError" in (last.error or "")
    assert told.wait(10)
    assert isinstance(engine.failure, ZeroDivisionError)
    assert engine.unfinished == 0
    with pytest.raises(EngineStoppedError, match="failed"):
        engine.submit(greedy([1], 1))
    engine.stop()


@pytest.mark.parametrize("command", ["add", "cancel"])
def test_a_command_that_fails_costs_its_own_request_alone(
    command: str, engine: Engine, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Grammar:
        def matcher(self) -> None:
            raise Panic("native")

    well = greedy([1, 2], 40)
    ill = greedy([3], 900, grammar=Grammar()) if command == "add" else greedy([3], 900)
    monkeypatch.setattr(engine.core, "_free", lambda *args: 1 / 0) if command == "cancel" else None
    engine.submit(ill)
    if command == "cancel":
        while ill.id not in outbox.outputs:
            time.sleep(0.005)
        engine.cancel(ill.id)
    reason = outbox.wait(ill.id)[-1].finish_reason
    assert reason is (FinishReason.ERROR if command == "add" else FinishReason.CANCELLED)
    monkeypatch.undo()
    engine.submit(well)
    assert outbox.tokens(well.id) == reference(well)
    assert engine.failure is None


def test_several_requests_are_queued_all_or_none(engine: Engine, outbox: Outbox) -> None:
    assert engine.capacity == 8
    with pytest.raises(QueueFullError):
        engine.submit_all([greedy([n + 1], 2) for n in range(9)])
    assert engine.unfinished == 0
    requests = [greedy([n + 1], 2) for n in range(8)]
    engine.submit_all(requests)
    for request in requests:
        assert outbox.tokens(request.id) == reference(request)


def test_a_thread_without_an_engine_has_left_mlx_before_anybody_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter may exit then. A thread that is still inside MLX aborts the process."""
    left: list[threading.Thread] = []
    monkeypatch.setattr(mx, "clear_streams", lambda: left.append(threading.current_thread()))

    def build() -> EngineCore:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        Engine(build, Outbox())
    assert [thread.is_alive() for thread in left] == [False]
