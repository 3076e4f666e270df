"""`parallm-openai bench`."""

from __future__ import annotations

from parallm_openai.bench.shape import PairShape
from parallm_openai.cli.bench_settings import LoadSettings, OutputSettings, TargetSettings
from parallm_openai.cli.command import with_settings
from parallm_openai.cli.simulation_settings import SimulationSettings


@with_settings()
def bench(
    servers: TargetSettings,
    load: LoadSettings,
    output: OutputSettings,
    shape: PairShape,
    simulation: SimulationSettings,
) -> None:
    """Measure throughput and latency, with and without speculation, beside other servers; or simulate replicas."""
    # Its imports are slow, and `--help` needs none of them.
    from parallm_openai.cli.bench_run import run

    run(servers, load, output, shape, simulation)
