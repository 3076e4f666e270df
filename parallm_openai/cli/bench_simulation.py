"""What `parallm-openai bench` does with --simulate."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from parallm_openai.bench.servers import first_model
from parallm_openai.cli.bench_settings import OutputSettings, TargetSettings
from parallm_openai.cli.simulated_model import console, tell
from parallm_openai.cli.simulation_comparison import computed, served
from parallm_openai.cli.simulation_input import Traces, read_costs, traces
from parallm_openai.cli.simulation_settings import SimulationSettings
from parallm_openai.cpu import prepare
from parallm_openai.simulation.costs import StepCosts

if TYPE_CHECKING:
    from parallm_openai.settings import EngineConfig
    from parallm_openai.simulation.figures import Figures


def simulate(servers: TargetSettings, simulation: SimulationSettings, output: OutputSettings, seed: int) -> None:
    """Simulate each fleet with each router, and report.

    Raises BadUsage for files that cannot be used, or BenchError, before anything is simulated.
    """
    costs = read_costs(simulation)
    trace_for = traces(simulation, costs, seed)
    if simulation.compare_server and servers.url is not None:
        first_model(servers.url.rstrip("/"))
    config, seen = simulation.config, None
    if simulation.compare_engine:
        # Before anything imports mlx.
        prepare()
        # Without a server, nothing else takes time, and nobody waits for more requests.
        config = config.model_copy(update={"batch_timeout_ms": 0.0})
        costs = costs.model_copy(update={"request_seconds": 0.0, "serving_factor": 1.0})
        seen, costs = computed(servers, simulation, costs, trace_for(1))
    figures = _simulated(simulation, trace_for, costs, config, seed)
    if simulation.compare_server:
        seen = served(servers, simulation, costs, trace_for(1))
    _report(simulation, output, seed, figures, seen)


def _simulated(
    simulation: SimulationSettings, trace_for: Traces, costs: StepCosts, config: EngineConfig, seed: int
) -> list[Figures]:
    from parallm_openai.simulation.figures import Figures
    from parallm_openai.simulation.fleet import World, run_exactly, run_sampled
    from parallm_openai.simulation.routers import ROUTERS

    world, figures = World(costs, config, seed), []
    for replicas in simulation.replicas:
        trace = trace_for(replicas)
        for name in simulation.routers:
            tell(f"{replicas} replicas, {name}: {len(trace)} requests")
            router = ROUTERS[name](replicas, seed)
            with _no_search_for_garbage():
                if replicas <= simulation.exact_replicas:
                    outcome = run_exactly(trace, router, world, name)
                else:
                    outcome = run_sampled(trace, router, world, simulation.exact_replicas, name)
                figures.append(Figures.of(outcome))
    return figures


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Among millions of requests that live until the end, it takes a quarter of the time and finds nothing.

    The fleet itself is garbage then, in cycles that nothing else frees.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def _report(
    simulation: SimulationSettings, output: OutputSettings, seed: int, figures: list[Figures], seen: Figures | None
) -> None:
    from parallm_openai.simulation.report import as_json, comparison, plot, table

    # Neither a full disk nor a closed pipe takes the other results along.
    try:
        if output.json_file is not None:
            shown = simulation.model_dump(mode="json", exclude={"measure_costs", "record_trace"})
            output.json_file.write_text(as_json(shown | {"seed": seed}, figures, seen))
        if output.plot_file is not None:
            plot(figures, output.plot_file)
    finally:
        console.print(table(figures))
        if seen is not None:
            console.print("", *(comparison(each, seen) for each in figures))
