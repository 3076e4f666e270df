"""The controller against simulated costs and acceptances: nothing here looks at a clock."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from support.plain_rows import LIMIT, new_rows

from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.speculation.draft_length.step_cost import StepCost
from parallm_openai.engine.speculation.draft_length.tuning import DEFAULT


class Simulation:
    """A batch whose step costs and acceptance are known; keeps its own time."""

    def __init__(
        self,
        rows: int,
        acceptance: float | list[float],
        *,
        per_token: float = 0.05,
        draft: float = 0.15,
        catch_up: float = 0.0,
        rolling_back: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.rows = new_rows(rows)
        self.acceptance = acceptance if isinstance(acceptance, list) else [acceptance] * rows
        self.per_token, self.draft, self.catch_up = per_token, draft, catch_up
        # What a step takes longer after drafts.
        self.rolling_back, self.drafted_before = rolling_back, False
        self.behind = 0
        self.slowness = 1.0
        self.controller = DraftLength()
        self.rng = random.Random(1)
        self.tokens = 0
        self.lengths: list[int] = []

    def cost(self, length: int) -> tuple[float, float]:
        noise = self.slowness * self.rng.uniform(0.95, 1.05)
        verify = 1 + self.per_token * len(self.rows) * (length + 1) + self.rolling_back * self.drafted_before
        self.drafted_before = length > 0
        reading = self.catch_up * len(self.rows) * self.behind if length else 0.0
        self.behind = 0 if length else min(self.behind + 1, 24)
        return (self.draft * length + reading) * noise, verify * noise

    def run(self, steps: int) -> float:
        """Tokens per unit of time over so many steps."""
        began, tokens = self.now, self.tokens
        for _ in range(steps):
            drafted = self.controller.choose(self.rows, [LIMIT] * len(self.rows), 100).lengths
            accepted = [self.accept(k, p) for k, p in zip(drafted, self.acceptance, strict=True)]
            draft, verify = self.cost(max(drafted))
            self.now += draft + verify
            self.tokens += sum(accepted) + len(self.rows)
            self.lengths.append(max(drafted))
            self.learn(drafted, accepted, draft, verify)
        return (self.tokens - tokens) / (self.now - began)

    def learn(self, drafted: list[int], accepted: list[int], draft: float, verify: float) -> None:
        self.controller.learn(self.rows, drafted, accepted, 100, draft, verify)

    def accept(self, length: int, probability: float) -> int:
        count = 0
        while count < length and self.rng.random() < probability:
            count += 1
        return count

    def ideal(self, length: int) -> float:
        expected = sum(1 + sum(p**depth for depth in range(1, length + 1)) for p in self.acceptance)
        verify = 1 + self.per_token * len(self.rows) * (length + 1)
        return expected / (verify + self.draft * length)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("per_token", [0.01, 0.2])
@pytest.mark.parametrize("draft", [0.15, 0.3])
def test_the_rate_comes_near_that_of_the_best_fixed_length(
    rows: int, acceptance: float, per_token: float, draft: float
) -> None:
    simulation = Simulation(rows, acceptance, per_token=per_token, draft=draft)
    simulation.run(100)
    assert simulation.run(1000) > 0.94 * max(simulation.ideal(length) for length in range(LIMIT + 1))


def test_hostile_input_costs_less_than_five_percent_from_the_first_steps_on() -> None:
    simulation = Simulation(8, 0.0, per_token=0.1)
    assert simulation.run(300) > 0.95 * simulation.ideal(0)


@pytest.mark.parametrize("acceptance", [0.0, 0.3])
def test_what_a_draft_must_read_after_many_plain_steps_is_paid_for(acceptance: float) -> None:
    simulation = Simulation(16, acceptance, per_token=0.1, catch_up=0.02)
    simulation.run(300)
    assert simulation.run(3000) > 0.975 * simulation.ideal(0)


def test_it_finds_out_when_drafting_becomes_worth_while() -> None:
    simulation = Simulation(2, 0.0)
    simulation.run(300)
    assert simulation.lengths[-100:].count(0) > 90
    simulation.acceptance = [0.95, 0.95]
    simulation.run(1500)
    assert simulation.run(200) > 0.9 * simulation.ideal(LIMIT)


def test_a_plain_step_timed_while_the_machine_was_slow_is_not_believed_for_long() -> None:
    simulation = Simulation(16, 0.5, per_token=0.05, draft=0.4)
    simulation.slowness = 1.5
    simulation.run(2)
    simulation.slowness = 1.0
    simulation.run(100)
    simulation.lengths.clear()
    assert max(simulation.ideal(length) for length in range(1, LIMIT + 1)) < 0.98 * simulation.ideal(0)
    simulation.run(200)
    assert simulation.lengths.count(0) > 190


def test_a_plain_step_that_pays_for_the_drafts_before_it_does_not_make_drafts_look_good() -> None:
    """A recurrent model's draft is rolled back in the next step, which may be the plain one that is timed."""
    simulation = Simulation(8, 0.5, per_token=0.05, draft=0.15, rolling_back=1.5)

    def rate(deferred: bool) -> float:
        simulation.controller = DraftLength(deferred=deferred)
        simulation.run(100)
        return simulation.run(400)

    assert rate(deferred=False) < 0.95 * simulation.ideal(0) < rate(deferred=True)


def test_rows_that_accept_less_are_drafted_less() -> None:
    simulation = Simulation(2, [0.98, 0.02], per_token=0.01)
    simulation.run(200)
    easy, hard = simulation.controller.choose(simulation.rows, [LIMIT, LIMIT], 100).lengths
    assert easy > hard


def test_a_lucky_measurement_of_a_wide_step_does_not_make_drafts_that_nobody_accepts() -> None:
    simulation = Simulation(4, 0.0)
    simulation.run(50)
    for _ in range(20):
        simulation.controller.costs.verify.learn(4, 3, 100, 0.1)
    simulation.run(200)
    assert simulation.lengths[-200:].count(0) > 180


def test_rows_near_their_end_are_no_reason_to_time_every_length() -> None:
    simulation = Simulation(4, 0.9, per_token=0.5)
    simulation.run(100)
    known = [simulation.controller.costs.verify.known(width) for width in range(1, LIMIT + 2)]
    for longest in (5, 4, 3, 2, 1) * 3:
        drafted = simulation.controller.choose(simulation.rows, [longest] * 4, 100).lengths
        simulation.learn(drafted, [0] * 4, 0.1, 2.0)
    assert [simulation.controller.costs.verify.known(width) for width in range(1, LIMIT + 2)] == known


def test_limits_are_kept() -> None:
    simulation = Simulation(3, 0.95, per_token=0.01)
    simulation.run(50)
    chosen = simulation.controller.choose(simulation.rows, [0, 2, LIMIT], 100).lengths
    assert all(k <= limit for k, limit in zip(chosen, [0, 2, LIMIT], strict=True))
    assert simulation.controller.choose(simulation.rows, [0, 0, 0], 100).lengths == [0, 0, 0]


def test_prompts_are_read_for_rows_that_will_be_drafted_for() -> None:
    crowded = Simulation(16, 0.9, per_token=0.5)
    crowded.run(200)
    assert crowded.lengths[-1] in (0, DEFAULT.draft_tokens)
    alone = Simulation(1, 0.9, per_token=0.5)
    alone.controller = crowded.controller
    alone.run(50)
    # A crowd is not worth it, a row by itself is: whatever was chosen just now.
    assert not alone.controller.expects_drafts(16, 100, LIMIT)
    assert alone.controller.expects_drafts(1, 100, LIMIT)


def test_where_nothing_is_accepted_prompts_are_read_for_a_small_share_of_the_time() -> None:
    hostile = Simulation(2, 0.0)
    hostile.run(400)
    spent, explorations, began, cost = 0.0, 0, hostile.now, 0.7
    for _ in range(1000):
        hostile.run(2)
        assert not hostile.controller.expects_drafts(2, 100, LIMIT)
        prompts = new_rows(DEFAULT.prefill_rows + 2)
        if explored := hostile.controller.explore_prefill(prompts):
            assert explored == prompts[: DEFAULT.prefill_rows]
            # A prompt that was begun is read to its end.
            assert hostile.controller.explore_prefill(explored[1:]) == explored[1:]
            hostile.controller.record_prefill_exploration(cost)
            spent, explorations = spent + cost, explorations + 1
    assert explorations > 1
    assert spent < 1.5 * DEFAULT.prefill_share * (hostile.now - began)


def test_rows_whose_prompts_were_explored_are_drafted_for_once_and_no_others() -> None:
    hostile = Simulation(4, 0.0)
    hostile.run(400)
    newcomers = new_rows(2)
    assert hostile.controller.explore_prefill(newcomers) == newcomers
    rows = [*hostile.rows[:2], *newcomers]
    chosen = hostile.controller.choose(rows, [LIMIT] * 4, 100).lengths
    assert [length > 0 for length in chosen] == [False, False, True, True]
    hostile.controller.learn(rows, chosen, [0] * 4, 100, 0.5, 2.0)
    assert hostile.controller.choose(rows, [LIMIT] * 4, 100).lengths == [0] * 4
    # The time of that draft is part of the exploration.
    others = new_rows(1)
    for _ in range(30):
        hostile.run(1)
        assert not hostile.controller.explore_prefill(others)


def test_a_fixed_length_stays_fixed() -> None:
    controller = DraftLength()
    rows = new_rows(2)
    for _ in range(50):
        chosen = controller.choose(rows, [LIMIT, 2], 10, fixed=3).lengths
        controller.learn(rows, chosen, [0, 0], 10, 1.0, 1.0)
    assert controller.choose(rows, [LIMIT, LIMIT], 10, fixed=3).lengths == [3, 3]
    assert controller.report()["current_draft_length"] == 3


def test_costs_of_unseen_shapes_are_estimated_from_seen_ones() -> None:
    cost = StepCost()
    for rows in (1, 2, 8):
        for width in (1, 5):
            for _ in range(3):
                cost.learn(rows, width, 100, 1 + 0.1 * rows * width)
    assert cost.estimate(4, 3, 100) == pytest.approx(2.2, rel=0.1)
    assert cost.estimate(8, 5, 100) == pytest.approx(5.0, rel=0.01)


def test_one_slow_step_does_not_condemn_its_shape() -> None:
    cost = StepCost()
    for _ in range(10):
        cost.learn(1, 1, 100, 1.0)
    cost.learn(1, 1, 100, 100.0)
    assert cost.estimate(1, 1, 100) < 1.3


def test_the_choice_alone_changes_nothing() -> None:
    """A scheduler may ask as often as it likes: only what is learnt of steps that were run counts."""
    simulation = Simulation(4, [0.9, 0.5, 0.2, 0.0], per_token=0.1)
    for _ in range(60):
        simulation.run(7)
        before = simulation.controller.report()
        chosen = [simulation.controller.choose(simulation.rows, [LIMIT] * 4, 100).lengths for _ in range(20)]
        assert chosen == chosen[:1] * 20
        assert simulation.controller.report() == before


def test_importing_the_rules_loads_no_mlx() -> None:
    package = "parallm_openai.engine.speculation.draft_length"
    script = f"import sys, {package}; print([name for name in sys.modules if name.split('.')[0] in ('mlx', 'mlx_lm')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
