"""The real engine beside the simulation: its forwards are noted in the shapes that costs are asked for."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.servers import demo_draft, demo_target
from support.simulated import step_costs
from support.tiny import greedy

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.row import TARGET
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.step import EngineCore
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.core import VirtualClock
from parallm_openai.simulation.costs import CostModel
from parallm_openai.simulation.own_engine import slowness
from parallm_openai.simulation.timed_core import Forward, TimedCore


def run(core: TimedCore, prompts: int = 4) -> None:
    """Prompts of different lengths, of which some are read in pieces."""
    rng = random.Random(1)
    for number in range(prompts):
        core.add(greedy([rng.randrange(3, 2000) for _ in range(20 + 30 * number)], 6))
    while not core.idle:
        core.step()


def timed_core(clock: VirtualClock) -> TimedCore:
    return TimedCore.of(demo_target(), EngineConfig(prefill_chunk=64), demo_draft(), clock)


@pytest.mark.slow
def test_every_forward_of_the_target_is_noted_in_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    core = timed_core(VirtualClock())
    shapes: list[tuple[int, int]] = []
    own = ModelRunner.forward

    def forward(self: ModelRunner, batch: Batch, inputs: Inputs, *args: Any, **options: Any) -> Any:
        if self.role == TARGET:
            shapes.append((inputs.rows, inputs.width))
        return own(self, batch, inputs, *args, **options)

    monkeypatch.setattr(ModelRunner, "forward", forward)
    run(core)
    assert [(each.rows, each.width) for each in core.forwards] == shapes
    assert {each.kind for each in core.forwards} == {"prefill", "verify"}
    assert max(each.width for each in core.forwards if each.kind == "verify") > 1


def test_a_prompts_first_token_is_part_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX computes what only that token depends on when it is sampled."""
    clock = VirtualClock()
    core = timed_core(clock)
    own = EngineCore._first_tokens

    def first_tokens(*args: Any) -> Any:
        clock.advance(1.0)
        return own(*args)

    monkeypatch.setattr(EngineCore, "_first_tokens", first_tokens)
    run(core, prompts=1)
    assert [each.seconds for each in core.forwards if each.kind == "prefill"] == [1.0]


def test_reading_and_decoding_have_a_factor_each_which_the_spread_is_no_part_of() -> None:
    costs = step_costs(spread=(0.5, 1.0, 3.0))
    model = CostModel(costs, seed=1)
    shapes = [(1, 40, 0), (4, 100, 300), (2, 7, 50)] * 400
    forwards = [
        forward
        for rows, size, at in shapes
        for forward in (
            Forward("prefill", rows, size, at, 1.4 * model.prefill(rows, size, at)),
            Forward("verify", rows, size % 9, at, 2 * model.verify(rows, size % 9, at)),
        )
    ]
    assert slowness(forwards, costs) == pytest.approx((1.4, 2.0), rel=0.1)
    assert slowness([], costs) == (1.0, 1.0)


def test_costs_of_a_slower_machine_are_longer_by_its_factors() -> None:
    plain, slow = (CostModel(costs, noise=False) for costs in (step_costs(), step_costs().slowed(1.5, 2.0)))
    assert slow.prefill(2, 30, 0) == pytest.approx(1.5 * plain.prefill(2, 30, 0))
    assert slow.draft_prefill(2, 30, 0) == pytest.approx(1.5 * plain.draft_prefill(2, 30, 0))
    assert slow.verify(2, 3, 0) == pytest.approx(2 * plain.verify(2, 3, 0))
    assert slow.draft(2, [1, 1], 0) == pytest.approx(2 * plain.draft(2, [1, 1], 0))
    assert slow.step(3) == pytest.approx(2 * plain.step(3))
    alone = step_costs(drafter="none", draft=None, draft_prefill=None)
    assert alone.slowed(1.5, 2.0).draft is None
