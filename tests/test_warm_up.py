"""A warmed-up engine is one that has done nothing yet, but for what is compiled."""

from __future__ import annotations

import pytest
from support import tiny
from support.tiny import Run, reference, seeded

from parallm_openai.engine.warm_up import REQUESTS, warm_up


@pytest.mark.parametrize("ahead", [False, True])
def test_nothing_of_the_warm_up_is_left(ahead: bool) -> None:
    core = tiny.core(lambda: tiny.draft_model(0.2), runs_ahead=ahead)
    steps = core.step
    outputs = []
    core.step = lambda: outputs.append(steps()) or []  # type: ignore[method-assign, func-returns-value]
    warm_up(core)
    del core.step
    assert sum(len(output.tokens) for step in outputs for output in step) == sum(p.max_tokens or 0 for p in REQUESTS)
    assert core.idle
    fresh = tiny.core(lambda: tiny.draft_model(0.2)).stats.report()
    assert core.stats.report() | {"uptime": 0} == fresh | {"uptime": 0}
    assert not core.timeline.after(0)
    assert not core.scheduler.prefixes.report()["sequences"]
    assert core.scheduler.common.draft_length.costs.unmeasured(3) == 0
    request = seeded([4, 5], 20, 3)
    run = Run(core)
    run.add(request)
    assert run.finish().tokens[request.id] == reference(request)
