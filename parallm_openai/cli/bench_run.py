"""What `parallm-openai bench` does: our server in its modes, and others beside it, round by round in one run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from parallm_openai import interrupts
from parallm_openai.bench.report import Series, as_json, plot, tables
from parallm_openai.bench.rounds import measure
from parallm_openai.bench.servers import HttpTarget, current_settings, first_model, own_server, peer
from parallm_openai.bench.shape import PairShape
from parallm_openai.bench.targets import BenchError, Target
from parallm_openai.cli.bench_costs import measure_costs
from parallm_openai.cli.bench_files import check_files
from parallm_openai.cli.bench_settings import PLOT_NEEDS, LoadSettings, OutputSettings, TargetSettings
from parallm_openai.cli.bench_simulation import simulate
from parallm_openai.cli.failure import BAD_USAGE, BadUsage, explained, fail
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.cli.simulation_input import check_can_measure_costs, check_can_simulate
from parallm_openai.cli.simulation_settings import SimulationSettings
from parallm_openai.cpu import prepare
from parallm_openai.settings import DraftSettings, ModelSettings
from parallm_openai.simulation.trace import TraceRequest, write_trace

if TYPE_CHECKING:
    from parallm_openai.bench.in_process import InProcessTarget

MODES = {
    "plain": {"use_speculative_decoding": "false"},
    "speculative": {"use_speculative_decoding": "true"},
}
console = Console()


def run(
    servers: TargetSettings,
    load: LoadSettings,
    output: OutputSettings,
    shape: PairShape,
    simulation: SimulationSettings,
) -> None:
    """Measure and report, or end the command with the reason why not."""
    try:
        # What can fail soon comes before what takes long.
        if output.plot_file is not None and importlib.util.find_spec("matplotlib") is None:
            raise BenchError(f"--plot {PLOT_NEEDS}")
        check_files(output, simulation)
        if simulation.measure_costs is not None:
            check_can_measure_costs((servers, load, output, shape))
            return measure_costs(servers, simulation)
        if simulation.simulate:
            check_can_simulate(servers, (load, output, shape), simulation)
            return simulate(servers, simulation, output, shape.seed)
        if servers.make_only and servers.make_model is None:
            raise BadUsage("--make-only: needs --make-model, which says where")
        peers = _peers(servers.peers)
        if servers.make_model is not None:
            _make(servers.make_model, shape)
            if servers.make_only:
                return None
        # A server that has been started must end with the command.
        with interrupts.raised_once(), ExitStack() as stack:
            sent: list[list[TraceRequest]] = []
            targets = _targets(servers, peers, max(load.concurrency), stack)
            series = measure(
                targets,
                load.concurrency,
                load.samplings,
                load.load(shape.seed),
                requests=load.requests,
                rounds=load.rounds,
                say=lambda text: console.print(text, style="dim"),
                record=sent.append,
            )
        if simulation.record_trace is not None:
            write_trace(simulation.record_trace, sent[-1])
        _report(series, load, output)
    except BadUsage as error:
        fail(str(error), BAD_USAGE)
    except (BenchError, ValueError, OSError) as error:
        fail(str(error))


def _peers(specs: Sequence[str]) -> list[HttpTarget]:
    found = [peer(spec) for spec in specs]
    names = [*MODES, *(each.name for each in found)]
    for name in names:
        if names.count(name) > 1:
            raise BenchError(f"--peer: more than one server would be called {name}")
    return found


def _make(folder: Path, shape: PairShape) -> None:
    prepare()
    from parallm_openai.bench.make_model import make_pair

    made = make_pair(folder, shape)
    console.print(f"{folder}: a pair whose draft agrees with {made.agreement:.0%} of the target's greedy tokens")
    console.print(
        f"at temperature 1, the likeliest token has a probability of {made.top_probability:.2f} on average, "
        f"and target and draft share {made.overlap:.0%}"
    )


def _targets(servers: TargetSettings, peers: Sequence[HttpTarget], rows: int, stack: ExitStack) -> list[Target]:
    """All that is measured, in each way that answers may come; the stack ends what is started."""
    model, draft_model = servers.model, servers.draft_model
    if servers.make_model is not None:
        model = model or str(servers.make_model / "target")
        draft_model = draft_model or str(servers.make_model / "draft")
    targets: list[Target] = []
    http = [way for way in servers.ways if way != "in-process"]
    if http:
        address = servers.url or stack.enter_context(own_server(_arguments(model, draft_model, rows)))
        ours = _own(address.rstrip("/"))
        if servers.url is not None:
            # A server that was there before is left as it was.
            stack.callback(replace(ours[0], settings=current_settings(ours[0].url, ours[0].settings)).prepare)
        targets += [replace(target, way=way) for way in http for target in (*ours, *peers)]
    if "in-process" in servers.ways:
        targets += _in_process(model, draft_model, rows, stack)
    return targets


def _arguments(model: str | None, draft_model: str | None, rows: int) -> list[str]:
    """`serve`'s arguments for a server with a row for each client."""
    arguments = ["--max-batch-size", str(rows)]
    if model is not None:
        arguments += ["--model", model]
    if draft_model is not None:
        arguments += ["--draft-model", draft_model]
    return arguments


def _own(url: str) -> list[HttpTarget]:
    name = first_model(url)
    extra = {"ignore_eos": True}
    return [HttpTarget(mode, url, name, settings, extra) for mode, settings in MODES.items()]


def _in_process(model: str | None, draft_model: str | None, rows: int, stack: ExitStack) -> list[InProcessTarget]:
    prepare()
    from parallm_openai.bench.in_process import InProcessTarget, local_engine

    # A server that this command starts takes the variable, too.
    settings = ModelSettings(model=model or os.environ.get("PARALLM_MODEL") or None)
    draft = load_draft(settings, DraftSettings(draft_model=draft_model))
    with explained():
        local = stack.enter_context(local_engine(load_model(settings), draft, rows))
    return [InProcessTarget(mode, local, changes) for mode, changes in MODES.items()]


def _report(series: Sequence[Series], load: LoadSettings, output: OutputSettings) -> None:
    for table in tables(series):
        console.print(table, "")
    if output.json_file is not None:
        shown = {"max_tokens", "prompt_words", "long_prompts", "long_words", "rate"}
        output.json_file.write_text(as_json(series, load.model_dump(mode="json", include=shown)))
    if output.plot_file is not None:
        plot(series, output.plot_file)
