"""The simulated engine makes the plans of the real one, step by step.

The real engine runs a tiny model on a clock that only its forwards advance, by what the costs say of their shape. The
simulated one has the same costs and the answers that the real one gave. It must then ask for forwards of the same
shapes in the same order, and plan the same steps.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.tiny import CONTEXT, DRAFTERS, Run, core, greedy, seeded

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.plan import Plan
from parallm_openai.engine.request import Request
from parallm_openai.engine.row import DRAFT, TARGET
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.step import EngineCore
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.core import SimulatedCore, VirtualClock

STEPS = 2000


@dataclass
class Uneven:
    """Costs that differ from call to call, the same for the same calls in the same order."""

    draft_share: float = 0.1
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def forward(self, role: str, rows: int, width: int) -> float:
        self.asked.append((role, rows, width))
        self.calls[role] += 1
        luck = random.Random(f"{role}, {self.calls[role]}").uniform(0.8, 1.3)
        return luck * (1.0 if role == TARGET else self.draft_share) * (0.02 + 0.001 * rows * width)

    def prefill(self, rows: int, width: int, context: int) -> float:
        return self.forward(TARGET, rows, width)

    def draft_prefill(self, rows: int, width: int, context: int) -> float:
        return self.forward(DRAFT, rows, width)

    def draft(self, rows: int, widths: Sequence[int], context: int) -> float:
        return sum(self.forward(DRAFT, rows, width) for width in widths)

    def verify(self, rows: int, width: int, context: int) -> float:
        return self.forward(TARGET, rows, width)

    def step(self, rows: int) -> float:
        return 0.0


@dataclass
class Known:
    """An answer that was given before, and how much of each of its drafts was accepted."""

    given: Sequence[int]
    agreed: deque[int]

    def tokens(self, generated: int, count: int) -> list[int]:
        # What a step computes beyond the end is cut off.
        return [*self.given[generated : generated + count], *[0] * count][:count]

    def accepted(self, drafted: int) -> int:
        return self.agreed.popleft()


@contextmanager
def planned(engine: EngineCore, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the engine plans in each step, without the rows themselves."""
    plans: list[dict[str, Any]] = []
    own = engine.scheduler.plan
    names = dict(zip(engine.scheduler.buckets, ("common", "long"), strict=True))

    def plan(config: EngineConfig) -> Plan:
        made = own(config)
        plans.append(
            {
                "preempt": [row.id for row in made.preempt],
                "admit": [(each.row.id, names[each.bucket], each.length) for each in made.admit],
                "prefill": [
                    (
                        names[each.bucket],
                        each.width,
                        [(row.id, names[bucket]) for row, bucket in each.through.items()],
                        {row.id for row in each.drafting},
                        each.exploring,
                    )
                    for each in made.prefill
                ],
                "moves": [(row.id, names[bucket]) for row, bucket in made.moves],
                "decode": [
                    (names[each.bucket], [(row.id, length) for row, length in each.draft_lengths.items()])
                    for each in made.decode
                ],
            }
        )
        return made

    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "plan", plan)
        yield plans


@contextmanager
def timed_by(costs: Uneven, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Real forwards advance the clock by what they cost."""
    own = ModelRunner.forward

    def forward(self: ModelRunner, batch: Batch, inputs: Inputs, *args: Any, **options: Any) -> Any:
        clock.advance(costs.forward(self.role, *inputs.ids.shape))
        return own(self, batch, inputs, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "forward", forward)
        yield


@contextmanager
def acceptance_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, deque[int]]]:
    """How much of each draft is accepted, by request."""
    agreed: dict[int, deque[int]] = defaultdict(deque)
    own = DraftLength.learn

    def learn(self: DraftLength, rows: Any, drafted: Any, accepted: Any, *rest: Any) -> None:
        for row, count, kept in zip(rows, drafted, accepted, strict=True):
            if count:
                agreed[row.id].append(kept)
        own(self, rows, drafted, accepted, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(DraftLength, "learn", learn)
        yield agreed


def drive(joins: Sequence[tuple[int, Request]], add: Callable[[Request], None], step: Callable[[], bool]) -> None:
    """Requests join at given steps; `step` says whether the engine has come to an end."""
    waiting = deque(sorted(joins, key=lambda join: join[0]))
    for number in range(STEPS):
        while waiting and waiting[0][0] <= number:
            add(waiting.popleft()[1])
        if step() and not waiting:
            return
    raise AssertionError("the engine does not come to an end")


def requests() -> list[tuple[int, Request]]:
    """Some that share beginnings, short and long, at different times."""
    rng = random.Random(3)
    shared = [rng.randrange(61) for _ in range(80)]
    made = []
    for number in range(10):
        # The first is long, and alone for a while.
        own = [rng.randrange(61) for _ in range(rng.choice((2, 9, 40, 150)) if number else 150)]
        prompt = own if number % 3 else shared + own
        length = rng.choice((1, 4, 90, 130)) if number else 130
        make = greedy(prompt, length) if number % 2 else seeded(prompt, length, number)
        made.append((rng.choice((3, 3, 5, 12, 30)) if number else 0, make))
    return made


# Each with a part that its plans have at least once.
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "defaults": ({}, "admit"),
    "few rows": ({"max_batch_size": 3, "prefix_cache_tokens": 300, "max_prefill_ms": 40}, "decode"),
    "preemption": ({"max_batch_tokens": 330}, "preempt"),
    "two buckets": ({"padding_limit": 60}, "moves"),
    "small chunks": ({"prefill_chunk": 24, "max_batch_size": 5}, "prefill"),
}


@pytest.mark.parametrize(
    ("drafter", "draft_share", "name"),
    [
        *(("fair draft", 0.1, name) for name in SETTINGS),
        ("none", 0.5, "preemption"),
        ("hostile draft", 0.5, "defaults"),
    ],
)
def test_the_simulation_plans_what_the_engine_plans(
    drafter: str, draft_share: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, part = SETTINGS[name]
    joins = requests()
    real, costs = core(DRAFTERS[drafter], **settings), Uneven(draft_share)
    real.clock = clock = VirtualClock()
    run = Run(real)
    with (
        timed_by(costs, clock, monkeypatch),
        acceptance_of(monkeypatch) as agreed,
        planned(real, monkeypatch) as expected,
    ):
        drive(joins, run.add, lambda: run.step() is not None and real.idle)

    again = Uneven(draft_share)
    simulated = SimulatedCore(
        real.config, real.scheduler.traits, again, context_length=CONTEXT, drafts=drafter != "none"
    )

    def add(request: Request) -> None:
        simulated.submit(request, Known(run.tokens[request.id], agreed[request.id]))

    with planned(simulated, monkeypatch) as plans:
        drive(joins, add, lambda: simulated.advance() is not None and simulated.idle)
    assert again.asked == costs.asked
    for number, (plan, real_plan) in enumerate(zip(plans, expected, strict=True)):
        assert plan == real_plan, f"step {number}"
    assert simulated.clock.now == pytest.approx(clock.now)
    assert simulated.scheduler.prefixes.report() == real.scheduler.prefixes.report()
    assert not any(agreed.values()), "every draft was made again"
    assert any(plan[part] for plan in plans)
    assert any(length for plan in plans for _, _, length in plan["admit"]), "some prompts begin with stored ones"
