"""Admission and prefill shares, without a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.config import EngineConfig
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.row import Row
from parallm_openai.engine.scheduler import HEADROOM, Scheduler


def row(length: int) -> Row:
    return Row.of(Request((1,) * length, SamplingParams()), 10_000, frozenset())


@given(
    lengths=st.lists(st.integers(1, 300), max_size=20),
    batch=st.integers(1, 8),
    budget=st.integers(1, 3000),
)
def test_admission_is_in_order_and_within_both_limits(lengths: list[int], batch: int, budget: int) -> None:
    config = EngineConfig(max_batch_size=batch, max_batch_tokens=budget)
    scheduler = Scheduler()
    rows = [row(length) for length in lengths]
    scheduler.waiting.extend(rows)
    admitted = scheduler.admit(config)
    assert admitted == rows[: len(admitted)]
    assert list(scheduler.waiting) == rows[len(admitted) :]
    assert len(admitted) <= batch
    area = len(admitted) * (max((len(r.tokens) for r in admitted), default=0) + HEADROOM)
    assert len(admitted) <= 1 or area <= budget
    assert admitted or not rows, "a lone request always fits"


@given(remaining=st.lists(st.integers(0, 5000), min_size=1, max_size=40), chunk=st.integers(1, 600))
def test_a_steps_prefill_stays_within_the_chunk_and_always_moves_on(remaining: list[int], chunk: int) -> None:
    width = Scheduler().prefill_width(EngineConfig(prefill_chunk=chunk), remaining)
    assert width * len(remaining) <= max(chunk, len(remaining))
    assert width >= 1 or max(remaining) == 0
    assert width <= max(remaining)


def test_a_row_sent_back_is_served_next() -> None:
    scheduler = Scheduler()
    scheduler.running = [row(3), row(4)]
    scheduler.waiting.append(row(5))
    sent_back = scheduler.requeue(0)
    assert scheduler.waiting[0] is sent_back
    assert len(scheduler.running) == 1
