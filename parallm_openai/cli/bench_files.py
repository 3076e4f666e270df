"""The files that `parallm-openai bench` reads and writes."""

from __future__ import annotations

import os
from pathlib import Path

from parallm_openai.cli.bench_settings import OutputSettings
from parallm_openai.cli.failure import BadUsage
from parallm_openai.cli.simulation_settings import SimulationSettings


def check_files(output: OutputSettings, simulation: SimulationSettings) -> None:
    """Raise BadUsage if a result could not be written, or would overwrite another file of the same command."""
    written = {
        "--json": output.json_file,
        "--plot": output.plot_file,
        "--measure-costs": simulation.measure_costs,
        "--record-trace": simulation.record_trace,
    }
    taken = {file.resolve(): "--costs" for file in [simulation.costs_file] if file is not None}
    taken |= {file.resolve(): "--trace" for file in [simulation.trace_file] if file is not None}
    for flag, file in written.items():
        if file is None:
            continue
        _check_writable(flag, file)
        other = taken.setdefault(file.resolve(), flag)
        # Anything may go to /dev/null.
        if other != flag and (file.is_file() or not file.exists()):
            raise BadUsage(f"{flag}: {file} is also the file of {other}")


def _check_writable(flag: str, file: Path) -> None:
    if file.is_dir() or not file.parent.is_dir():
        raise BadUsage(f"{flag}: {file} is a folder, or lies in none")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise BadUsage(f"{flag}: {file} cannot be written")
