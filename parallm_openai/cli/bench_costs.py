"""What `parallm-openai bench` does with --measure-costs."""

from __future__ import annotations

from parallm_openai import interrupts
from parallm_openai.bench.servers import own_server
from parallm_openai.cli.bench_settings import TargetSettings
from parallm_openai.cli.failure import explained
from parallm_openai.cli.simulated_model import CLOCKS, console, models_of, server_arguments, target_at, tell, text_of
from parallm_openai.cli.simulation_settings import SimulationSettings
from parallm_openai.cpu import prepare


def measure_costs(servers: TargetSettings, simulation: SimulationSettings) -> None:
    """Measure the engine in this process, then a server of the same model, and write what they take.

    Raises BenchError, or ValueError for a model that cannot be simulated.
    """
    assert simulation.measure_costs is not None
    prepare()
    from parallm_openai.simulation.measuring import measure
    from parallm_openai.simulation.replay import text_tokens
    from parallm_openai.simulation.serving import with_serving

    model, draft = models_of(servers)
    with explained():
        costs = measure(model, draft, text_of(model), tell, clock=CLOCKS[simulation.clock])
    # What has taken minutes is not lost if no server starts.
    costs.write(simulation.measure_costs)
    # A server's processor time is that of another process.
    if simulation.clock == "wall":
        with interrupts.raised_once(), own_server(server_arguments(servers, costs)) as url:
            tell("measuring what serving adds")
            costs = with_serving(costs, target_at(url), text_tokens(url))
        costs.write(simulation.measure_costs)
    console.print(f"{simulation.measure_costs}: what steps of {costs.model} take on this machine")
