"""Admission, prefill shares and lanes, without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.config import EngineConfig
from parallm_openai.engine.lane import Lane
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.row import Row
from parallm_openai.engine.scheduler import HEADROOM, LONG_PROMPT, Scheduler
from parallm_openai.engine.speculation.drafter import Drafter


def row(length: int) -> Row:
    return Row.of(Request((1,) * length, SamplingParams()), 10_000, frozenset())


@dataclass
class NoCache:
    def append(self) -> None: ...
    def remove(self, row: int) -> None: ...
    def take(self, other: Any, row: int) -> None: ...


@dataclass
class NoModel:
    ragged: bool = True
    prefilling: NoCache = field(default_factory=NoCache)
    decoding: NoCache = field(default_factory=NoCache)


def scheduler(waste_limit: int = 10**9) -> Scheduler:
    return Scheduler([Lane(NoModel(), Drafter()) for _ in range(2)], waste_limit)  # type: ignore[arg-type]


@given(lengths=st.lists(st.integers(1, 3000), max_size=20), batch=st.integers(1, 8), budget=st.integers(1, 9000))
def test_admission_is_in_order_and_within_both_limits(lengths: list[int], batch: int, budget: int) -> None:
    config = EngineConfig(max_batch_size=batch, max_batch_tokens=budget)
    plan = scheduler()
    rows = [row(length) for length in lengths]
    plan.waiting.extend(rows)
    plan.admit(config)
    admitted = plan.prefilling
    assert {r.id for r in admitted} == {r.id for r in rows[: len(admitted)]}
    assert list(plan.waiting) == rows[len(admitted) :]
    assert len(admitted) <= batch
    assert len(admitted) <= 1 or sum(len(r.tokens) + HEADROOM for r in admitted) <= budget
    assert admitted or not rows, "a lone request always fits"
    assert all(len(r.tokens) > LONG_PROMPT for r in plan.long.prefilling)


@given(unread=st.lists(st.integers(0, 5000), min_size=1, max_size=40), chunk=st.integers(1, 600), both=st.booleans())
def test_a_steps_prefill_stays_within_the_chunk_and_always_moves_on(unread: list[int], chunk: int, both: bool) -> None:
    plan = scheduler()
    plan.common.prefilling = [row(2)]
    plan.long.prefilling = [row(2)] if both else []
    width = plan.prefill_width(plan.common, unread, EngineConfig(prefill_chunk=chunk))
    assert width * len(unread) <= max(chunk // (2 if both else 1), len(unread))
    assert width >= 1 or max(unread) == 0
    assert width <= max(unread)


def test_a_row_sent_back_is_served_next() -> None:
    plan = scheduler()
    first, newest = row(3), row(4)
    plan.common.running = [newest, first]
    newest.arrived = first.arrived + 1
    plan.waiting.append(row(5))
    plan.requeue_newest(plan.common)
    assert plan.waiting[0] is newest
    assert plan.common.running == [first]


@given(lengths=st.lists(st.integers(1, 5000), max_size=12), limit=st.integers(0, 20_000))
def test_no_lane_shares_more_padding_than_a_forward_costs(lengths: list[int], limit: int) -> None:
    plan = scheduler(limit)
    rows = [row(length) for length in lengths]
    plan.common.running = list(rows)
    plan.rebalance()
    assert plan.common.waste() <= limit or len(plan.common.running) == 1
    assert sorted(r.id for r in plan.running) == sorted(r.id for r in rows)
    if plan.long.running and plan.common.running:
        assert min(len(r.tokens) for r in plan.long.running) >= max(len(r.tokens) for r in plan.common.running)
