"""The trace of a simulation on the real thing: a server, or an engine in this process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from parallm_openai import interrupts
from parallm_openai.bench.servers import current_settings, own_server
from parallm_openai.cli.bench_settings import TargetSettings
from parallm_openai.cli.failure import BadUsage
from parallm_openai.cli.simulated_model import CLOCKS, models_of, server_arguments, target_at, tell, text_of
from parallm_openai.cli.simulation_settings import SimulationSettings
from parallm_openai.simulation.costs import StepCosts
from parallm_openai.simulation.trace import TraceRequest

if TYPE_CHECKING:
    from parallm_openai.simulation.figures import Figures
    from parallm_openai.simulation.replica import Job

WARM_UP_REQUESTS = 8


def served(
    servers: TargetSettings, simulation: SimulationSettings, costs: StepCosts, trace: Sequence[TraceRequest]
) -> Figures:
    """On a server, as its clients see it. Raises BenchError."""
    from parallm_openai.simulation.replay import Prompts, replay, text_tokens

    with interrupts.raised_once(), ExitStack() as stack:
        url = servers.url or stack.enter_context(own_server(server_arguments(servers, costs)))
        target = target_at(url.rstrip("/"))
        if simulation.engine_settings:
            target = replace(target, settings=simulation.engine_settings)
            stack.callback(replace(target, settings=current_settings(target.url, target.settings)).prepare)
            target.prepare()
        text = text_tokens(target.url)
        tell("serving the trace")
        # At once: the trace's first requests may be hours apart.
        replay(target, [replace(each, at=0.0) for each in trace[:WARM_UP_REQUESTS]], Prompts(text, "warm up"))
        jobs = replay(target, trace, Prompts(text, "served"))
    return _figures("served", jobs)


def computed(
    servers: TargetSettings, simulation: SimulationSettings, costs: StepCosts, trace: Sequence[TraceRequest]
) -> tuple[Figures, StepCosts]:
    """On an engine in this process, and the costs with the speed that the machine had then. Raises BadUsage."""
    from parallm_openai.simulation.own_engine import run_engine, slowness
    from parallm_openai.simulation.replay import Prompts

    model, draft = models_of(servers)
    if (draft is None) != (costs.drafter == "none"):
        drafts = "without a draft model" if costs.drafter == "none" else "with one"
        raise BadUsage(f"--draft-model: {simulation.costs_file} was measured {drafts}; compare with the same")
    tell("running the trace")
    clock = CLOCKS[simulation.clock]
    jobs, forwards = run_engine(model, draft, simulation.config, trace, Prompts(text_of(model), "served"), clock)
    reading, decoding = slowness(forwards, costs)
    tell(
        f"the engine took {reading:.2f} times what {simulation.costs_file} says to read prompts, and {decoding:.2f} "
        "times to decode"
    )
    return _figures("engine", jobs), costs.slowed(reading, decoding)


def _figures(name: str, jobs: Sequence[Job]) -> Figures:
    from parallm_openai.simulation.figures import Figures
    from parallm_openai.simulation.fleet import Outcome

    return Figures.of(Outcome(1, name, jobs, [(job, 1.0) for job in jobs], 0.0, exact=True))
