"""What is simulated: the costs and the trace, checked before anything starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from parallm_openai.bench.targets import BenchError
from parallm_openai.cli.bench_settings import TargetSettings
from parallm_openai.cli.failure import BadUsage
from parallm_openai.cli.options import options_of
from parallm_openai.cli.simulation_settings import MADE_UP, SIMULATION_NEEDS, SimulationSettings
from parallm_openai.setting_types import Settings
from parallm_openai.simulation.costs import StepCosts
from parallm_openai.simulation.problems import FileError
from parallm_openai.simulation.trace import TraceRequest, read_trace, write_trace
from parallm_openai.simulation.workloads import Workload

# Each takes about a kilobyte, and they live until the end.
MOST_REQUESTS = 5_000_000

Traces = Callable[[int], list[TraceRequest]]
"""The trace for a fleet of so many replicas."""


def check_can_measure_costs(given: Iterable[Settings]) -> None:
    """Raises BadUsage if another of bench's flags was given that means nothing then, and BenchError without simpy."""
    _check_meant(given, {"--model", "--draft-model"}, "--measure-costs")
    _check_simpy()


def check_can_simulate(servers: TargetSettings, others: Iterable[Settings], simulation: SimulationSettings) -> None:
    """As `check_can_measure_costs`. A server that runs has its model; one that is started is given it."""
    allowed = {"--json", "--plot", "--seed"}
    if simulation.compare_server and servers.url is not None:
        allowed |= {"--url"}
    elif simulation.compare_server or simulation.compare_engine:
        allowed |= {"--model", "--draft-model"}
    _check_meant((servers, *others), allowed, "--simulate")
    _check_simpy()


def _check_simpy() -> None:
    if importlib.util.find_spec("simpy") is None:
        raise BenchError(f"this {SIMULATION_NEEDS}")


def read_costs(simulation: SimulationSettings) -> StepCosts:
    """Raises BadUsage."""
    assert simulation.costs_file is not None
    with _naming("--costs"):
        return StepCosts.read(simulation.costs_file)


def traces(simulation: SimulationSettings, costs: StepCosts, seed: int) -> Traces:
    """Each fleet's trace: the file's, or what is made up for it. Raises BadUsage."""
    if simulation.trace_file is not None:
        with _naming("--trace"):
            given = read_trace(simulation.trace_file, costs.context_length)
        return lambda replicas: given
    _check_lengths(simulation, costs.context_length)
    _check_count(simulation)
    if not _workload(simulation, min(simulation.replicas), costs.context_length, seed).requests():
        raise BadUsage("--trace-seconds: no request comes in that time; raise it, or --replica-rate")

    def made_up(replicas: int) -> list[TraceRequest]:
        trace = _workload(simulation, replicas, costs.context_length, seed).requests()
        if simulation.record_trace is not None:
            write_trace(simulation.record_trace, trace)
        return trace

    return made_up


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    try:
        yield
    except FileError as error:
        raise BadUsage(f"{flag}: {error}") from error


def _workload(simulation: SimulationSettings, replicas: int, context_length: int, seed: int) -> Workload:
    return Workload(
        rate=simulation.replica_rate * replicas,
        seconds=simulation.trace_seconds,
        longest=context_length,
        seed=seed,
        **simulation.model_dump(include=MADE_UP - {"replica_rate", "trace_seconds"}),
    )


def _check_lengths(simulation: SimulationSettings, context_length: int) -> None:
    """The mean request must fit, or nearly all would be cut off."""
    lengths = {"--prompt-tokens": simulation.prompt_tokens, "--output-tokens": simulation.output_tokens}
    if simulation.content != "single":
        lengths["--system-tokens"] = simulation.system_tokens
    if sum(lengths.values()) > context_length:
        longest, *others = sorted(lengths, key=lambda flag: -lengths[flag])
        raise BadUsage(
            f"{longest}: is {sum(lengths.values())} tokens with {' and '.join(others)}, more than the model's context "
            f"of {context_length}"
        )


def _check_count(simulation: SimulationSettings) -> None:
    count = simulation.replica_rate * simulation.trace_seconds * max(simulation.replicas)
    if count > MOST_REQUESTS:
        raise BadUsage(
            f"--trace-seconds: some {count:,.0f} requests would come, and at most {MOST_REQUESTS:,} can be simulated; "
            "lower it, --replica-rate or --replicas"
        )


def _check_meant(given: Iterable[Settings], allowed: Collection[str], mode: str) -> None:
    """Raise BadUsage for the first flag that was given and means nothing in this mode."""
    for settings in given:
        for option in options_of(type(settings)):
            if option.field in settings.model_fields_set and option.flag not in allowed:
                raise BadUsage(f"{option.flag}: means nothing with {mode}")
