"""Admission, prefill shares and lanes, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.config import EngineConfig
from parallm_openai.engine.lane import Lane
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.row import Row
from parallm_openai.engine.scheduler import HEADROOM, LONG_PROMPT, Scheduler, first_width
from parallm_openai.engine.speculation.drafter import Drafter

numbers = count()


def row(length: int) -> Row:
    """A row whose prompt begins like no other's."""
    return Row.of(Request((next(numbers), *(1,) * (length - 1)), SamplingParams()), 10_000, frozenset())


@dataclass
class NoCache:
    lengths: tuple[int, ...] = (0, 0)

    def remove(self, row: int) -> None: ...
    def take(self, other: Any, row: int) -> None: ...


@dataclass
class NoModel:
    ragged: bool = True
    prefilling: NoCache = field(default_factory=NoCache)
    decoding: NoCache = field(default_factory=NoCache)

    def admit(self, kept: Any, length: int) -> None: ...


def scheduler(waste_limit: int = 10**9, forward_tokens: int = 8) -> Scheduler:
    lanes = [Lane(NoModel(), Drafter()) for _ in range(2)]  # type: ignore[arg-type]
    return Scheduler(lanes, waste_limit, forward_tokens)


def reading_cost(lengths: Sequence[int], cuts: Sequence[int], forward_tokens: int) -> int:
    """Forwards that end at each of the cuts in turn."""
    starts = (0, *cuts)
    return sum(
        forward_tokens + sum(length > start for length in lengths) * (end - start)
        for start, end in zip(starts, cuts, strict=False)
    )


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
    plan.common.prefilling = [row(2) for _ in unread]
    plan.long.prefilling = [row(2)] if both else []
    share = plan.prefill_share(plan.common, EngineConfig(prefill_chunk=chunk))
    width = plan.prefill_width(plan.common, unread, share)
    assert width * len(unread) <= max(chunk // (2 if both else 1), len(unread))
    assert width <= share
    assert share * len(unread) <= max(chunk // (2 if both else 1), len(unread))
    assert width >= 1 or max(unread) == 0
    assert width <= max(unread)


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=7), forward_tokens=st.integers(0, 100))
def test_prompts_are_read_in_the_forwards_that_cost_least(lengths: list[int], forward_tokens: int) -> None:
    cuts = sorted({length for length in lengths if length})
    ways = (
        [(*inner, cuts[-1]) for count in range(len(cuts)) for inner in combinations(cuts[:-1], count)] if cuts else [()]
    )
    cheapest = min(reading_cost(lengths, way, forward_tokens) for way in ways)
    taken: list[int] = []
    while width := first_width([max(0, length - sum(taken)) for length in lengths], forward_tokens):
        taken.append(width)
    ends = [sum(taken[: place + 1]) for place in range(len(taken))]
    assert reading_cost(lengths, ends, forward_tokens) == cheapest


def test_rows_whose_state_takes_no_padding_are_read_at_once() -> None:
    plan = scheduler(forward_tokens=0)
    assert plan.prefill_width(plan.common, [3, 9], 20) == 3
    plan.common.target.ragged = False
    assert plan.prefill_width(plan.common, [3, 9], 20) == 9


def test_a_row_sent_back_is_served_next() -> None:
    plan = scheduler()
    first, newest = row(3), row(4)
    plan.common.running = [newest, first]
    newest.arrived = first.arrived + 1
    plan.waiting.append(row(5))
    plan.requeue_newest(plan.common, EngineConfig())
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
