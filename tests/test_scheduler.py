"""What the scheduler plans, without a model: its rows and batches are plain data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations, count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallm_openai.engine.batch import Bucket, padding
from parallm_openai.engine.plan import Plan
from parallm_openai.engine.prompt_widths import first_width
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.row import TARGET, Row
from parallm_openai.engine.scheduler import HEADROOM, LONG_PROMPT, ModelTraits, Scheduler
from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.suffix import SuffixDrafter
from parallm_openai.settings import EngineConfig

numbers = count()
NO_LIMIT = 10**9


def row(length: int, max_tokens: int = 16) -> Row:
    """A row whose prompt begins like no other's."""
    prompt = (next(numbers), *(1,) * (length - 1))
    return Row.of(Request(prompt, SamplingParams(max_tokens=max_tokens)), 10_000, frozenset())


def scheduler(
    padding_limit: int = NO_LIMIT, forward_tokens: int = 8, drafter: Drafter | None = None, ragged: bool = True
) -> Scheduler:
    traits = ModelTraits(ragged, padding_limit, forward_tokens, prefill_tokens=256)
    return Scheduler(Bucket(DraftLength()), Bucket(DraftLength()), drafter or Drafter(), traits)


def decoding(bucket: Bucket, rows: Sequence[Row]) -> None:
    for each in rows:
        bucket.decoding.append(each)
        each.computed[TARGET].length = len(each.tokens) - 1


def reading_cost(lengths: Sequence[int], cuts: Sequence[int], forward_tokens: int) -> int:
    """Forwards that end at each of the cuts in turn."""
    starts = (0, *cuts)
    return sum(
        forward_tokens + sum(length > start for length in lengths) * (end - start)
        for start, end in zip(starts, cuts, strict=False)
    )


def test_planning_loads_no_mlx() -> None:
    code = (
        "import sys, parallm_openai.engine.scheduler; print([name for name in sys.modules if name.startswith('mlx')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@given(lengths=st.lists(st.integers(1, 3000), max_size=20), batch=st.integers(1, 8), budget=st.integers(1, 9000))
def test_admission_is_in_order_and_within_both_limits(lengths: list[int], batch: int, budget: int) -> None:
    plans = scheduler()
    rows = [row(length) for length in lengths]
    plans.waiting.extend(rows)
    plan = plans.plan(EngineConfig(max_batch_size=batch, max_batch_tokens=budget))
    admitted = [admission.row for admission in plan.admit]
    assert admitted == rows[: len(admitted)]
    assert len(admitted) <= batch
    assert len(admitted) <= 1 or sum(len(r.tokens) + HEADROOM for r in admitted) <= budget
    assert admitted or not rows, "a lone request always fits"
    assert all((a.bucket is plans.long) == (len(a.row.tokens) > LONG_PROMPT) for a in plan.admit)
    assert list(plans.waiting) == rows, "planning changes nothing"


def prompt_tokens(plan: Plan, bucket: Bucket) -> int:
    return sum(forward.width for forward in plan.prefill if forward.bucket is bucket)


@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=40), chunk=st.integers(1, 600), both=st.booleans())
def test_a_steps_prefill_stays_within_the_chunk_and_always_advances(lengths: list[int], chunk: int, both: bool) -> None:
    plans = scheduler()
    for each in [row(length) for length in lengths]:
        plans.common.prefilling.append(each)
    if both:
        plans.long.prefilling.append(row(5000))
    plan = plans.plan(EngineConfig(prefill_chunk=chunk))
    width = prompt_tokens(plan, plans.common)
    assert width * len(lengths) <= max(chunk // (2 if both else 1), len(lengths))
    assert 1 <= width <= max(lengths)
    through = {r for forward in plan.prefill for r in forward.through}
    assert {len(r.tokens) for r in through} == {length for length in lengths if length <= width}
    assert sum(len(decode.draft_lengths) for decode in plan.decode) == len(through)


def test_a_long_prompt_is_read_in_smaller_pieces_while_others_decode() -> None:
    plans = scheduler()
    plans.prefill_speed.learn(100, 0, 0.1)
    plans.common.prefilling.append(row(1000))
    assert prompt_tokens(plans.plan(EngineConfig()), plans.common) == plans.traits.prefill_tokens == 256
    decoding(plans.common, [row(20)])
    within_limit = plans.prefill_speed.tokens_within(0.05, 0)
    assert prompt_tokens(plans.plan(EngineConfig(max_prefill_ms=50)), plans.common) == within_limit < 100
    assert prompt_tokens(plans.plan(EngineConfig(max_prefill_ms=50, prefill_chunk=5)), plans.common) == 5
    plans.decode_seconds = 0.2
    as_long = plans.prefill_speed.tokens_within(0.2, 0)
    assert prompt_tokens(plans.plan(EngineConfig(max_prefill_ms=50)), plans.common) == as_long > within_limit


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


@pytest.mark.parametrize(("ragged", "widths"), [(True, [4, 6]), (False, [10])])
def test_rows_whose_state_takes_no_padding_are_read_at_once(ragged: bool, widths: list[int]) -> None:
    plans = scheduler(forward_tokens=0, ragged=ragged)
    for length in (4, 10):
        plans.common.prefilling.append(row(length))
    assert [forward.width for forward in plans.plan(EngineConfig()).prefill] == widths


def test_only_what_can_be_taken_back_may_run_ahead() -> None:
    with pytest.raises(ValueError, match="taken back"):
        ModelTraits(ragged=False, padding_limit=1, forward_tokens=1, prefill_tokens=1, runs_ahead=True)


def test_the_newest_row_is_preempted_and_waits_first_in_the_queue() -> None:
    plans = scheduler()
    first, newest, other = row(300), row(400), row(5)
    newest.arrived = first.arrived + 1
    decoding(plans.common, [newest, first])
    plans.waiting.append(other)
    plan = plans.plan(EngineConfig(max_batch_tokens=500))
    assert plan.preempt == (newest,)
    assert not plan.admit, "the row that was preempted comes first"
    assert [list(decode.draft_lengths) for decode in plan.decode] == [[first]]
    plans.common.decoding.remove(newest)
    plans.requeue(plan.preempt)
    assert list(plans.waiting) == [newest, other]


@given(lengths=st.lists(st.integers(1, 5000), max_size=12), limit=st.integers(0, 20_000))
def test_no_bucket_shares_more_padding_than_a_forward_costs(lengths: list[int], limit: int) -> None:
    plans = scheduler(limit)
    rows = [row(length) for length in lengths]
    decoding(plans.common, rows)
    moved = dict(plans.plan(EngineConfig(max_batch_size=100, max_batch_tokens=NO_LIMIT)).moves)
    assert set(moved.values()) <= {plans.long}
    stay = [each for each in rows if each not in moved]
    assert padding(stay) <= limit or len(stay) == 1
    if moved and stay:
        assert min(len(r.tokens) for r in moved) >= max(len(r.tokens) for r in stay)


def test_a_row_near_its_end_is_drafted_for_no_further_than_it_goes() -> None:
    plans = scheduler(drafter=SuffixDrafter())
    ending, going_on = row(8, max_tokens=3), row(8, max_tokens=100)
    decoding(plans.common, [ending, going_on])
    [decode] = plans.plan(EngineConfig(draft_length=5)).decode
    assert decode.draft_lengths == {ending: 2, going_on: 5}


def test_a_prompt_that_may_generate_nothing_is_through_but_not_decoded() -> None:
    plans = scheduler()
    plans.common.prefilling.append(scored := row(4, max_tokens=0))
    plan = plans.plan(EngineConfig())
    assert [list(forward.through) for forward in plan.prefill] == [[scored]]
    assert not plan.decode
