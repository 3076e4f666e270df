"""The queue of inputs that wait for their embeddings: which share a forward, whose turn it is, and what fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from support import embedding_models

from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.engine.embedder import Embedder
from parallm_openai.engine.embedding_queue import MOST_WAITING, EmbeddingFailed, EmbeddingQueue
from parallm_openai.engine.worker import EngineStoppedError, QueueFullError
from parallm_openai.models.embedding import Pooling
from parallm_openai.models.loading import LoadedModel, load
from parallm_openai.settings import EngineConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(embedding_models.write(tmp_path_factory.mktemp("models") / "tiny-embedding", length=64))


class Recorded(Embedder):
    """Notes the lengths of the rows of each forward, and waits for `go` before it."""

    def __init__(self, model: LoadedModel, chunk: int) -> None:
        super().__init__(model.model, Pooling.LAST, chunk)
        self.forwards: list[list[int]] = []
        self.go = threading.Event()

    def embed(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        assert self.go.wait(60)
        self.forwards.append([len(row) for row in rows])
        if any(row[0] == 7 for row in rows):
            raise MemoryError("too much")
        return super().embed(rows)


@pytest.fixture
def engine(model: LoadedModel) -> Iterator[AsyncEngine]:
    made = AsyncEngine(model, EngineConfig())
    yield made
    asyncio.run(made.shutdown(0))


def row(length: int, first: int = 5) -> tuple[int, ...]:
    return (first, *[9] * (length - 1))


async def test_inputs_of_like_length_share_forwards_of_bounded_size(engine: AsyncEngine, model: LoadedModel) -> None:
    embedder = Recorded(model, chunk=24)
    queue = EmbeddingQueue(engine, embedder)
    asked = asyncio.ensure_future(queue.embed([row(length) for length in (4, 20, 4, 5, 4, 16, 4, 4, 4)]))
    await asyncio.sleep(0)
    embedder.go.set()
    assert len(await asked) == 9
    assert sorted(length for forward in embedder.forwards for length in forward) == [4, 4, 4, 4, 4, 4, 5, 16, 20]
    for forward in embedder.forwards:
        assert max(forward) <= 2 * min(forward)
        assert len(forward) == 1 or len(forward) * max(forward) <= 24
    assert len(embedder.forwards) <= 5


async def test_what_a_cancelled_request_wanted_is_not_computed(engine: AsyncEngine, model: LoadedModel) -> None:
    embedder = Recorded(model, chunk=8)
    queue = EmbeddingQueue(engine, embedder)
    first = asyncio.ensure_future(queue.embed([row(8)]))
    gone = asyncio.ensure_future(queue.embed([row(6)] * 50))
    last = asyncio.ensure_future(queue.embed([row(3)]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    embedder.go.set()
    await asyncio.gather(first, last)
    assert embedder.forwards in ([[8], [3]], [[8], [6], [3]])


async def test_requests_take_turns(engine: AsyncEngine, model: LoadedModel) -> None:
    embedder = Recorded(model, chunk=8)
    queue = EmbeddingQueue(engine, embedder)
    many = asyncio.ensure_future(queue.embed([row(8)] * 20))
    await asyncio.sleep(0)
    short = asyncio.ensure_future(queue.embed([row(3)]))
    await asyncio.sleep(0)
    embedder.go.set()
    await short
    assert [3] in embedder.forwards[:3]
    await many


async def test_a_failure_ends_only_the_request_that_caused_it(engine: AsyncEngine, model: LoadedModel) -> None:
    embedder = Recorded(model, chunk=24)
    queue = EmbeddingQueue(engine, embedder)
    asked = [queue.embed(rows) for rows in ([row(9)], [row(8), row(8, first=7), row(8)], [row(8)])]
    outcomes = asyncio.ensure_future(asyncio.gather(*asked, return_exceptions=True))
    await asyncio.sleep(0)
    embedder.go.set()
    first, failed, last = await outcomes
    assert isinstance(failed, EmbeddingFailed)
    assert "too much" in str(failed)
    assert isinstance(first, list)
    assert isinstance(last, list)


async def test_states_that_are_no_numbers_are_a_failure(
    engine: AsyncEngine, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "embed", lambda self, rows: np.full((len(rows), 4), np.nan, np.float32))
    queue = EmbeddingQueue(engine, Embedder(model.model, Pooling.LAST))
    with pytest.raises(EmbeddingFailed, match="not numbers"):
        await queue.embed([row(8)])


async def test_a_full_queue_takes_no_more(engine: AsyncEngine, model: LoadedModel) -> None:
    embedder = Recorded(model, chunk=8)
    queue = EmbeddingQueue(engine, embedder)
    waiting = asyncio.ensure_future(queue.embed([row(3)] * MOST_WAITING))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await queue.embed([row(3)] * MOST_WAITING)
    waiting.cancel()
    embedder.go.set()


async def test_an_engine_that_stops_leaves_nobody_waiting(model: LoadedModel) -> None:
    engine = AsyncEngine(model, EngineConfig())
    embedder = Recorded(model, chunk=8)
    queue = EmbeddingQueue(engine, embedder)
    asked = [asyncio.ensure_future(queue.embed([row(8)])) for _ in range(3)]
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(engine.shutdown(0))
    await asyncio.sleep(0)
    embedder.go.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    await stopping
    assert any(isinstance(outcome, EngineStoppedError) for outcome in outcomes)
    with pytest.raises(EngineStoppedError):
        await queue.embed([row(8)])
