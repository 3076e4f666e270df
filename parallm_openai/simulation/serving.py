"""What serving adds to the engine's own work: measured on a running server, beside the simulation of the same load."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from parallm_openai.bench.servers import HttpTarget
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.costs import StepCosts
from parallm_openai.simulation.fleet import World, run_exactly
from parallm_openai.simulation.replay import Prompts, replay
from parallm_openai.simulation.replica import Job
from parallm_openai.simulation.routers import Router
from parallm_openai.simulation.trace import TraceRequest

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 64
CROWD, TURNS = 8, 4


def with_serving(costs: StepCosts, target: HttpTarget, text: Sequence[int]) -> StepCosts:
    """The costs with `request_seconds` and `serving_factor`, from one client and from several. Raises BenchError."""
    # What is compiled or allocated at the first requests is no part of it.
    replay(target, _closed(CROWD, 1), Prompts(text, "warm up"))
    crowd, alone = _closed(CROWD, TURNS), _closed(1, 2 * TURNS)
    seen, expected = replay(target, crowd, Prompts(text, "crowd")), _simulated(costs, crowd)
    factor = max(0.5, _between_tokens(seen) / _between_tokens(expected))
    costs = costs.model_copy(update={"serving_factor": factor})
    seen, expected = replay(target, alone, Prompts(text, "alone")), _simulated(costs, alone)
    return costs.model_copy(update={"request_seconds": max(0.0, _first_token(seen) - _first_token(expected))})


def _closed(clients: int, turns: int) -> list[TraceRequest]:
    """Clients that each send their next request when the last has been answered."""
    return [
        TraceRequest(0.0, PROMPT_TOKENS, OUTPUT_TOKENS, session=f"client-{client}")
        for _ in range(turns)
        for client in range(clients)
    ]


def _simulated(costs: StepCosts, trace: Sequence[TraceRequest]) -> Sequence[Job]:
    return run_exactly(trace, Router(1), World(costs, EngineConfig())).jobs


def _between_tokens(jobs: Sequence[Job]) -> float:
    return median(each.between_tokens for each in jobs if each.between_tokens is not None)


def _first_token(jobs: Sequence[Job]) -> float:
    return median(each.ttft for each in jobs if each.ttft is not None)
