"""A row's draft is computed or copied, whichever promises more; the output never depends on which."""

from __future__ import annotations

from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.plain_rows import LIMIT, PlainRow, new_rows
from support.tiny import greedy, seeded

from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.speculation.draft_length.acceptance_rate import AcceptanceRate
from parallm_openai.engine.speculation.draft_length.choice import Chances, Lengths
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.engine.speculation.portfolio import Portfolio, _joined
from parallm_openai.engine.speculation.suffix import SuffixDrafter

chances = st.none() | st.lists(st.floats(0, 1), max_size=5)


@given(st.lists(st.tuples(chances, chances), min_size=1, max_size=4))
def test_the_tokens_expected_are_those_of_each_rows_better_draft(rows: list[tuple[list[float] | None, ...]]) -> None:
    expected = Chances([row[0] for row in rows], [row[1] for row in rows]).expected(5)
    for verified, computed in product(range(6), range(6)):
        better = [max(sum((own or [])[:computed]), sum((copy or [])[:verified])) for own, copy in rows]
        assert expected[verified, computed] == pytest.approx(len(rows) + sum(better))


def trained(acceptance: float, draft: float = 0.2, per_token: float = 0.02) -> tuple[DraftLength, list[PlainRow]]:
    """The rules, after they have met two rows of which so many computed tokens are accepted."""
    rules, rows = DraftLength(), new_rows(2)
    for length in [0, 0, *([LIMIT, LIMIT, 2, 2] * 5)]:
        accepted = [round(acceptance * length)] * 2
        rules.learn(rows, [length] * 2, accepted, 100, draft * length, 1 + per_token * 2 * (length + 1))
    return rules, rows


def test_a_certain_copy_is_drafted_further_than_a_dear_model_would_be_asked_to() -> None:
    rules, rows = trained(acceptance=0.4)
    sure = [0.99**depth for depth in range(1, LIMIT + 1)]
    alone = rules.choose(rows, [LIMIT] * 2, 100)
    both = rules.choose(rows, [LIMIT] * 2, 100, copied=[sure, None])
    assert both.copied == [True, False]
    assert both.lengths[0] == LIMIT > max(alone.lengths)
    assert both.lengths[1] <= max(alone.lengths)


def test_a_doubtful_copy_gives_way_to_a_good_model() -> None:
    rules, rows = trained(acceptance=1.0)
    chosen = rules.choose(rows, [LIMIT] * 2, 100, copied=[[0.1], [0.1, 0.01]])
    assert chosen.copied == [False, False]
    assert min(chosen.lengths) > 1


def test_a_drafter_that_only_copies_drafts_for_no_other_row() -> None:
    rules, rows = trained(acceptance=1.0)
    for fixed in (None, 3):
        chosen = rules.choose(rows, [LIMIT] * 2, 100, fixed, [[0.9, 0.8, 0.7, 0.6], None], computes=False)
        assert chosen.copied == [True, False]
        assert chosen.lengths[0] > 0 == chosen.lengths[1]


def test_copies_say_nothing_of_the_model() -> None:
    rules, rows = trained(acceptance=0.5)
    before, own = rules.acceptance.averages.means(LIMIT), [row.acceptance for row in rows]
    known = [(rate.mean, rate.trials) for rate in own if isinstance(rate, AcceptanceRate)]
    draft = rules.costs.draft.estimate(2, 1, 100)
    for _ in range(20):
        rules.learn(rows, [LIMIT] * 2, [LIMIT] * 2, 100, 0.0, 1.3, copied=[True] * 2)
    assert rules.acceptance.averages.means(LIMIT) == before
    assert [(rate.mean, rate.trials) for rate in own if rate] == known
    assert rules.costs.draft.estimate(2, 1, 100) == draft
    # What is reported counts all drafts.
    assert rules.report()["recent_acceptance_by_position"][-1] > before[-1]


def test_a_model_is_tried_now_and_then_although_copies_pay() -> None:
    rules, rows = trained(acceptance=0.0)
    sure = [0.9**depth for depth in range(1, LIMIT + 1)]
    tried = 0
    for _ in range(400):
        chosen = rules.choose(rows, [LIMIT] * 2, 100, copied=[sure, None])
        lengths = Lengths.of(chosen.lengths, chosen.copied)
        tried += lengths.computed > 0
        verify = 1 + 0.04 * (lengths.verified + 1)
        rules.learn(rows, chosen.lengths, [0, 0], 100, 0.2 * lengths.computed, verify, chosen.copied)
    assert 0 < tried < 40


def test_each_row_gets_the_draft_that_was_made_for_it() -> None:
    device = Drafts([2, 0, 1], mx.array([[5, 6], [0, 0], [7, 0]]), [[], [], []], waits=2)
    host = Drafts.of([(), (1, 2, 3), ()])
    for computed in (device, Drafts.of([(5, 6), (), (7,)])):
        joined = _joined(computed, host)
        assert joined.tokens == [(5, 6), (1, 2, 3), (7,)]
        assert np.array(joined.ids).shape == (3, 3)
    assert _joined(device, host).waits == 2


def test_an_answer_given_before_is_copied_in_spite_of_a_model_that_is_always_wrong() -> None:
    core = tiny.core(lambda: Portfolio(tiny.draft_model(3.0), SuffixDrafter()), draft_length=4)
    tiny.run_all(core, [greedy([1, 2, 3], 40)])
    again, other = greedy([1, 2, 3], 40), seeded([9, 8, 7], 40, seed=3)
    run = tiny.run_all(core, [again, other])
    assert run.tokens[again.id] == tiny.reference(again)
    assert run.tokens[other.id] == tiny.reference(other)
    assert run.accepted(again) > 20


def test_the_model_keeps_pace_while_copies_are_taken() -> None:
    """Its cache lacks what was copied; it reads that before it drafts again, and then agrees as ever."""
    drafter = Portfolio(tiny.draft_model(0.0), SuffixDrafter())
    core = tiny.core(lambda: drafter, draft_length=3)
    assert isinstance(drafter.computing, DraftModel)
    tiny.run_all(core, [greedy([1, 2, 3], 20)])
    # The first is copied to the end of the answer before, and computed after that.
    requests = [greedy([1, 2, 3], 40), greedy([5, 6, 7], 40)]
    run = tiny.run_all(core, requests)
    for request in requests:
        assert run.tokens[request.id] == tiny.reference(request)
    # A model equal to the target is always right.
    assert min(map(run.accepted, requests)) >= 25
