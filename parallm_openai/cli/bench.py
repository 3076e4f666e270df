"""`parallm-openai bench`."""

from __future__ import annotations

from parallm_openai.bench.shape import PairShape
from parallm_openai.cli.bench_settings import LoadSettings, OutputSettings, TargetSettings
from parallm_openai.cli.command import with_settings


@with_settings()
def bench(servers: TargetSettings, load: LoadSettings, output: OutputSettings, shape: PairShape) -> None:
    """Measure throughput and latency, with and without speculation, beside other servers."""
    # Its imports are slow, and `--help` needs none of them.
    from parallm_openai.cli.bench_run import run

    run(servers, load, output, shape)
