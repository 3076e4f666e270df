"""What `parallm-openai bench` does with --simulate and --measure-costs."""

from __future__ import annotations

import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from parallm_openai import interrupts
from parallm_openai.bench.servers import HttpTarget, current_settings, first_model, own_server
from parallm_openai.bench.targets import BenchError
from parallm_openai.bench.words import words
from parallm_openai.cli.bench_settings import OutputSettings, TargetSettings
from parallm_openai.cli.failure import explained
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.cli.simulation_settings import SIMULATION_NEEDS, SimulationSettings
from parallm_openai.cpu import prepare
from parallm_openai.settings import DraftSettings, ModelSettings
from parallm_openai.simulation.costs import StepCosts
from parallm_openai.simulation.trace import TraceRequest, check_lengths, read_trace, write_trace
from parallm_openai.simulation.workloads import Workload

if TYPE_CHECKING:
    from parallm_openai.models.loading import LoadedModel
    from parallm_openai.simulation.figures import Figures

PROMPT_WORDS = 5000
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
console = Console()


def check_simulation_can_run() -> None:
    """Raises BenchError."""
    if importlib.util.find_spec("simpy") is None:
        raise BenchError(f"this {SIMULATION_NEEDS}")


def measure_costs(servers: TargetSettings, simulation: SimulationSettings) -> None:
    """Measure the engine in this process, then a server of the same model, and write what they take."""
    assert simulation.measure_costs is not None
    check_simulation_can_run()
    if servers.url is not None or servers.peers:
        raise BenchError("--measure-costs: measures a model of this machine; leave out --url and --peer")
    prepare()
    from parallm_openai.simulation.measuring import measure
    from parallm_openai.simulation.replay import text_tokens
    from parallm_openai.simulation.serving import with_serving

    model, draft = _models(servers)
    text = model.tokenizer.encode(" ".join(words(0, PROMPT_WORDS)))
    with explained():
        costs = measure(model, draft, text, _say, clock=CLOCKS[simulation.clock])
    # A server's processor time is that of another process.
    if simulation.clock == "wall":
        with interrupts.raised_once(), own_server(_server_arguments(servers, costs)) as url:
            _say("measuring what serving adds")
            costs = with_serving(costs, _target(url), text_tokens(url))
    _write(costs, simulation.measure_costs)


def _write(costs: StepCosts, file: Path) -> None:
    costs.write(file)
    console.print(f"{file}: what steps of {costs.model} take on this machine")


def _models(servers: TargetSettings) -> tuple[LoadedModel, LoadedModel | None]:
    from parallm_openai.models.loading import LoadedModel

    settings = ModelSettings(model=servers.model or os.environ.get("PARALLM_MODEL") or None)
    draft = load_draft(settings, DraftSettings(draft_model=servers.draft_model))
    # A trace says nothing of texts, which suffix drafts depend on.
    return load_model(settings), draft if isinstance(draft, LoadedModel) else None


def simulate(servers: TargetSettings, simulation: SimulationSettings, output: OutputSettings, seed: int) -> None:
    """Simulate each fleet with each router, and report."""
    check_simulation_can_run()
    if simulation.compare_engine:
        # Before anything imports mlx.
        prepare()
    from parallm_openai.simulation.figures import Figures
    from parallm_openai.simulation.fleet import World, run_exactly, run_sampled
    from parallm_openai.simulation.report import as_json, comparison, plot, table
    from parallm_openai.simulation.routers import ROUTERS

    assert simulation.costs_file is not None
    costs = StepCosts.read(simulation.costs_file)
    config, served = simulation.config, None
    if simulation.compare_engine:
        # Without a server, nothing else takes time, and nobody waits for more requests.
        config = config.model_copy(update={"batch_timeout_ms": 0.0})
        costs = costs.model_copy(update={"request_seconds": 0.0, "serving_factor": 1.0})
        served, factor = _computed(servers, simulation, costs, _trace(simulation, 1, costs, seed))
        _say(f"the engine's decode steps took {factor:.2f} times what {simulation.costs_file} says")
        costs = costs.model_copy(update={"serving_factor": factor})
    world = World(costs, config, seed)
    figures: list[Figures] = []
    with _no_search_for_garbage():
        for replicas in simulation.replicas:
            trace = _trace(simulation, replicas, costs, seed)
            for name in simulation.routers:
                _say(f"{replicas} replicas, {name}: {len(trace)} requests")
                router = ROUTERS[name](replicas, seed)
                if replicas <= simulation.exact_replicas:
                    outcome = run_exactly(trace, router, world, name)
                else:
                    outcome = run_sampled(trace, router, world, simulation.exact_replicas, name)
                figures.append(Figures.of(outcome))
    if simulation.compare_server:
        served = _served(servers, simulation, costs, trace)
    console.print(table(figures))
    if served is not None:
        console.print("", *(comparison(each, served) for each in figures))
    if output.json_file is not None:
        shown = simulation.model_dump(mode="json", exclude={"measure_costs", "record_trace"})
        output.json_file.write_text(as_json(shown | {"seed": seed}, figures, served))
    if output.plot_file is not None:
        plot(figures, output.plot_file)


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Among millions of requests that live until the end, it takes a quarter of the time and finds nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _trace(simulation: SimulationSettings, replicas: int, costs: StepCosts, seed: int) -> list[TraceRequest]:
    if simulation.trace_file is not None:
        trace = read_trace(simulation.trace_file)
    else:
        same = {"arrivals", "content", "prompt_tokens", "output_tokens", "system_prompts", "system_tokens"}
        workload = Workload(
            rate=simulation.replica_rate * replicas,
            seconds=simulation.trace_seconds,
            longest=min(costs.context_length, Workload.longest),
            seed=seed,
            **simulation.model_dump(include=same | {"turns", "think_seconds"}),
        )
        trace = workload.requests()
        if not trace:
            raise BenchError("--trace-seconds: no request comes in that time; raise it, or --replica-rate")
    check_lengths(trace, costs.context_length)
    if simulation.record_trace is not None:
        write_trace(simulation.record_trace, trace)
    return trace


def _served(
    servers: TargetSettings, simulation: SimulationSettings, costs: StepCosts, trace: Sequence[TraceRequest]
) -> Figures:
    """The same trace on a server, as its clients see it."""
    from parallm_openai.simulation.figures import Figures
    from parallm_openai.simulation.fleet import Outcome
    from parallm_openai.simulation.replay import Prompts, replay, text_tokens

    with interrupts.raised_once(), ExitStack() as stack:
        url = servers.url or stack.enter_context(own_server(_server_arguments(servers, costs)))
        target = _target(url.rstrip("/"))
        if simulation.engine_settings:
            target = replace(target, settings=simulation.engine_settings)
            stack.callback(replace(target, settings=current_settings(target.url, target.settings)).prepare)
            target.prepare()
        text = text_tokens(target.url)
        _say("serving the trace")
        replay(target, trace[:8], Prompts(text, "warm up"))
        jobs = replay(target, trace, Prompts(text, "served"))
    return Figures.of(Outcome(1, "served", jobs, [(job, 1.0) for job in jobs], 0.0, exact=True))


def _computed(
    servers: TargetSettings, simulation: SimulationSettings, costs: StepCosts, trace: Sequence[TraceRequest]
) -> tuple[Figures, float]:
    """The same trace on an engine in this process, and how many times what the costs say its steps took."""
    from parallm_openai.simulation.costs import CostModel
    from parallm_openai.simulation.figures import Figures
    from parallm_openai.simulation.fleet import Outcome
    from parallm_openai.simulation.own_engine import run_engine
    from parallm_openai.simulation.replay import Prompts

    model, draft = _models(servers)
    text = model.tokenizer.encode(" ".join(words(0, PROMPT_WORDS)))
    _say("running the trace")
    clock, expected = CLOCKS[simulation.clock], CostModel(costs, noise=False)
    jobs, factor = run_engine(model, draft, simulation.config, trace, Prompts(text, "served"), clock, expected)
    return Figures.of(Outcome(1, "engine", jobs, [(job, 1.0) for job in jobs], 0.0, exact=True)), factor


def _server_arguments(servers: TargetSettings, costs: StepCosts) -> list[str]:
    arguments = ["--model", servers.model] if servers.model is not None else []
    if servers.draft_model is not None:
        arguments += ["--draft-model", servers.draft_model]
    return [*arguments, "--draft", "none"] if costs.drafter == "none" else arguments


def _target(url: str) -> HttpTarget:
    return HttpTarget("served", url, first_model(url), extra={"ignore_eos": True})


def _say(text: str) -> None:
    console.print(text, style="dim")
