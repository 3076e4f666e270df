"""`parallm-openai bench --simulate` and what it needs: costs that the real engine has, traces that bench records."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.servers import RunningServer, demo_draft, demo_target
from support.simulated import step_costs
from typer.testing import CliRunner

from parallm_openai.bench.servers import HttpTarget
from parallm_openai.cli import app
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation import measuring
from parallm_openai.simulation.core import VirtualClock
from parallm_openai.simulation.measuring import measure
from parallm_openai.simulation.replay import Prompts, replay, text_tokens
from parallm_openai.simulation.timed_core import TimedCore
from parallm_openai.simulation.trace import TraceRequest, read_trace, write_trace
from parallm_openai.simulation.workloads import Workload


@pytest.fixture
def costs(tmp_path: Path) -> str:
    step_costs().write(tmp_path / "costs.json")
    return str(tmp_path / "costs.json")


def bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *arguments])
    return result.exit_code, result.output


def test_the_command_compares_routers_at_several_sizes(costs: str, tmp_path: Path) -> None:
    found, picture, trace = tmp_path / "found.json", tmp_path / "found.svg", tmp_path / "made.jsonl"
    code, output = bench(
        *("--simulate", "--costs", costs, "--replicas", "1,2,6", "--routers", "round-robin,session"),
        *("--content", "agents", "--trace-seconds", "4", "--replica-rate", "3", "--exact-replicas", "2"),
        *("--engine", "max_batch_size=4", "--json", str(found), "--plot", str(picture), "--record-trace", str(trace)),
    )
    assert code == 0, output
    said = json.loads(found.read_text())
    assert [(one["replicas"], one["router"], one["exact"]) for one in said["simulated"]] == [
        (replicas, router, replicas < 6) for replicas in (1, 2, 6) for router in ("round-robin", "session")
    ]
    assert said["settings"]["content"] == "agents"
    assert picture.read_text().lstrip().startswith("<?xml")
    assert len(read_trace(trace)) == said["simulated"][-1]["requests"]
    lines = output.splitlines()
    assert "6*" in output
    assert max(map(len, lines)) <= 80


def test_a_given_trace_is_simulated(costs: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0, "prompt_tokens": 30, "output_tokens": 5}\n' * 3)
    code, output = bench("--simulate", "--costs", costs, "--trace", str(trace), "--json", str(tmp_path / "found.json"))
    assert code == 0, output
    assert json.loads((tmp_path / "found.json").read_text())["simulated"][0]["requests"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--simulate"], "--simulate: needs --costs"),
        (["--replicas", "3"], "--replicas: needs --simulate"),
        (["--costs", "x.json"], "--costs: needs --simulate"),
        (["--simulate", "--costs", "x", "--replicas", "0"], "--replicas: must be from 1 to 100000"),
        (
            ["--simulate", "--costs", "x", "--replicas", "2", "--compare-server"],
            "--compare-server: compares with --replicas 1",
        ),
        (["--simulate", "--costs", "x", "--routers", "best"], "--routers: must be round-robin, two-choices"),
        (["--simulate", "--costs", "x", "--engine", "rows"], "--engine: must be NAME=VALUE, not 'rows'"),
        (["--simulate", "--costs", "x", "--engine", "rows=3"], "--engine: rows: is no setting of the engine"),
        (["--simulate", "--costs", "x", "--engine", "max_batch_size=0"], "--engine: max_batch_size: Input should be"),
        (["--simulate", "--costs", "x", "--engine", "max_batch_size="], "--engine: max_batch_size: Input should be"),
        (["--simulate", "--costs", "x", "--engine", "=3"], "--engine: '': is no setting of the engine"),
        (
            ["--simulate", "--costs", "x", "--engine", "draft_length=1", "--engine", "draft_length=2"],
            "--engine: draft_length: is given twice",
        ),
        (["--simulate", "--costs", "x", "--measure-costs", "y"], "--measure-costs: measures first"),
        (
            ["--simulate", "--costs", "x", "--replicas", "1e9"],
            "--replicas: must be whole numbers, by commas, not '1e9'",
        ),
        (["--simulate", "--costs", "x", "--replicas", "1000000000"], "--replicas: must be from 1 to 100000"),
        (["--simulate", "--costs", "x", "--replicas", ","], "--replicas: must be whole numbers, by commas"),
        (["--simulate", "--costs", "x", "--replica-rate", "0"], "--replica-rate: must be a number from 0.0001 to 1000"),
        (["--simulate", "--costs", "x", "--replica-rate", "nan"], "--replica-rate: must be a number from 0.0001"),
        (["--simulate", "--costs", "x", "--trace-seconds", "-3"], "--trace-seconds: must be a number from 0.001"),
        (["--simulate", "--costs", "x", "--trace", "t", "--turns", "2"], "--turns: is for a trace that is made up"),
        (
            ["--simulate", "--costs", "x", "--trace", "t", "--record-trace", "u"],
            "--record-trace: is for a trace that is",
        ),
        (["--simulate", "--costs", "x", "--turns", "2"], "--turns: needs --content agents"),
        (["--simulate", "--costs", "x", "--system-tokens", "2"], "--system-tokens: needs --content shared or agents"),
        (["--simulate", "--costs", "x", "--clock", "processor"], "--clock: needs --measure-costs or --compare-engine"),
        (["--clock", "processor"], "--clock: needs --measure-costs or --compare-engine"),
        (["--measure-costs", "c.json", "--record-trace", "t"], "--record-trace: --measure-costs sends no trace"),
        (["--measure-costs", "c.json", "--url", "http://127.0.0.1:9"], "--url: means nothing with --measure-costs"),
        (["--measure-costs", "c.json", "--json", "x.json"], "--json: means nothing with --measure-costs"),
        (["--simulate", "--costs", "x", "--concurrency", "4"], "--concurrency: means nothing with --simulate"),
        (["--simulate", "--costs", "x", "--layers", "6"], "--layers: means nothing with --simulate"),
        (["--simulate", "--costs", "x", "--model", "demo"], "--model: means nothing with --simulate"),
        (["--simulate", "--costs", "x", "--peer", "a=b"], "--peer: means nothing with --simulate"),
        (
            ["--simulate", "--costs", "x", "--compare-engine", "--url", "http://u"],
            "--url: means nothing with --simulate",
        ),
        (
            ["--simulate", "--costs", "x", "--compare-server", "--url", "http://u", "--model", "demo"],
            "--model: means nothing with --simulate",
        ),
        (["--simulate", "--costs", "x", "--plot", "x.txt"], "--plot: must be a .svg or .png file, not 'x.txt'"),
        (["--simulate", "--costs", "x.json", "--json", "./x.json"], "--json: x.json is also the file of --costs"),
        (["--measure-costs", "/nowhere/at/all.json"], "--measure-costs: /nowhere/at/all.json"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(arguments: list[str], said: str) -> None:
    code, output = bench(*arguments)
    assert code == 2
    assert said in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--costs", "/nowhere.json"], "--costs: /nowhere.json: No such file"),
        (["--trace", "/nowhere.jsonl"], "--trace: /nowhere.jsonl: No such file"),
        (["--trace", "LONG"], "line 2: prompt_tokens and output_tokens: 4097 together, more than the model's 4096"),
        (["--trace-seconds", "0.001"], "--trace-seconds: no request comes"),
        (["--trace-seconds", "86400", "--replicas", "1,100000"], "--trace-seconds: some 8,640,000,000 requests would"),
        (
            ["--prompt-tokens", "5000"],
            "--prompt-tokens: is 5064 tokens with --output-tokens, more than the model's cont",
        ),
        (
            ["--content", "agents", "--system-tokens", "4000"],
            "--system-tokens: is 4192 tokens with --prompt-tokens and --output-tokens, more than the model's context",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_it_begins(
    arguments: list[str], said: str, costs: str, tmp_path: Path
) -> None:
    long = tmp_path / "long.jsonl"
    write_trace(long, [TraceRequest(0.0, 4000, 96), TraceRequest(1.0, 4000, 97)])
    given = [] if "--costs" in arguments else ["--costs", costs]
    code, output = bench("--simulate", *given, *(str(long) if each == "LONG" else each for each in arguments))
    assert code == 2
    assert said in output
    assert output.count("\n") == 1


def test_a_server_that_is_not_there_is_found_before_anything_is_simulated(costs: str) -> None:
    code, output = bench("--simulate", "--costs", costs, "--compare-server", "--url", "http://127.0.0.1:9")
    assert code == 1
    assert output.startswith("parallm-openai: http://127.0.0.1:9 does not list its models")


def test_a_peer_of_no_url_is_one_sentence() -> None:
    code, output = bench("--peer", "other=http://[::1")
    assert code == 1
    assert output.startswith("parallm-openai: the peer other does not answer at http://[::1 (")


def test_without_simpy_the_command_says_what_to_install(costs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, output = bench("--simulate", "--costs", costs)
    assert code == 1
    assert "needs simpy: pip install 'parallm-openai[simulate]'" in output


@pytest.fixture
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROWS": (1, 2),
        "WIDTHS": (1, 3),
        "PROMPT_TOKENS": (8, 16),
        "PROMPT_ROWS": (1, 2),
        "CONTEXTS": (32, 64),
        "PROMPT_CONTEXTS": (0, 64),
        "DECODE_STEPS": 2,
        "ANSWERS": 3,
        "ANSWER_TOKENS": 12,
    }.items():
        monkeypatch.setattr(measuring, name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("few_shapes")
def test_costs_are_measured_with_the_real_engine() -> None:
    said: list[str] = []
    found = measure(demo_target(), demo_draft(), list(range(20, 400)), said.append, rounds=1, clock=time.process_time)
    assert said
    assert (found.drafter, found.verify.rows, found.verify.sizes) == ("draft_model", (1, 2), (1, 3))
    assert (found.prefill.rows, found.prefill.sizes, found.prefill.contexts) == ((1, 2), (8, 16), (0, 64))
    for grid in (found.verify, found.prefill, found.draft, found.draft_prefill):
        assert grid is not None
        assert all(seconds > 0 for plane in grid.seconds for line in plane for seconds in line)
    assert found.acceptance
    assert all(0 <= rate <= 1 for rate in found.acceptance)


@pytest.mark.slow
@pytest.mark.usefixtures("few_shapes")
def test_choosing_a_draft_length_is_a_part_of_a_step_and_not_of_its_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    choose, forward = DraftLength.choose, ModelRunner.forward

    def chosen(self: DraftLength, rows: Any, limits: Any, context: int, fixed: int | None = None, *rest: Any) -> Any:
        clock.advance(1.0 if fixed is None else 0.0)
        return choose(self, rows, limits, context, fixed, *rest)

    def computed(self: ModelRunner, *args: Any, **options: Any) -> Any:
        clock.advance(0.01)
        return forward(self, *args, **options)

    monkeypatch.setattr(DraftLength, "choose", chosen)
    monkeypatch.setattr(ModelRunner, "forward", computed)
    found = measure(demo_target(), demo_draft(), list(range(20, 400)), print, rounds=1, clock=clock)
    assert found.step_seconds == pytest.approx((1.0, 0.0))
    for grid in (found.verify, found.prefill, found.draft, found.draft_prefill):
        assert grid is not None
        assert np.array(grid.seconds) == pytest.approx(0.01)


def test_a_context_too_short_to_measure_is_one_sentence() -> None:
    short = replace(demo_target(), context_length=512)
    with pytest.raises(measuring.Unmeasurable, match=r"its context has 512 tokens, and measuring takes \d+"):
        measure(short, None, [1, 2, 3], print)


def test_copies_are_neither_measured_nor_compared_with() -> None:
    """What they are worth depends on what is written."""
    core = TimedCore.of(demo_target(), EngineConfig(), demo_draft(), time.process_time)
    assert core.drafter is core.scheduler.drafter
    assert core.drafter.name == "draft_model"


def test_a_server_answers_a_trace_as_long_as_it_asks_and_in_the_order_of_sessions(server: RunningServer) -> None:
    target = HttpTarget("demo", server.url, "parallm-demo", extra={"ignore_eos": True})
    trace = [
        TraceRequest(0.0, 60, 7, (("system", 40),)),
        TraceRequest(0.0, 50, 5, (("system", 40),), "one"),
        TraceRequest(0.0, 70, 6, (("system", 40), ("one", 20)), "one"),
    ]
    text = text_tokens(server.url)
    prompts = Prompts(text, "test")
    jobs = replay(target, trace, prompts)
    assert [job.tokens for job in jobs] == [7, 5, 6]
    assert jobs[1].ended_at is not None
    assert jobs[2].sent_at >= jobs[1].ended_at
    one, two = (prompts.of(number, trace[number]) for number in (0, 1))
    assert (len(one), len(two)) == (60, 50)
    assert one[:40] == two[:40]
    assert one[40:50] != two[40:50]


def test_the_command_compares_itself_with_a_server(server: RunningServer, costs: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    with server.configured():
        code, output = bench(
            *("--simulate", "--costs", costs, "--compare-server", "--url", server.url, "--trace-seconds", "1"),
            *(
                "--replica-rate",
                "4",
                "--prompt-tokens",
                "4",
                "--output-tokens",
                "2",
                "--json",
                str(found),
                "--engine",
                "max_batch_size=3",
            ),
        )
        assert code == 0, output
        assert server.engine.config.max_batch_size != 3, "the server is left as it was"
    said = json.loads(found.read_text())
    assert said["served"]["requests"] == said["simulated"][0]["requests"]
    assert "served" in output
    assert "TTFT p99, ms" in output


def test_bench_records_what_it_sent(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "sent.jsonl"
    with server.configured():
        code, output = bench(
            *("--url", server.url, "--concurrency", "2", "--requests", "2", "--rounds", "1", "--max-tokens", "3"),
            *("--prompt-words", "2,4", "--record-trace", str(file)),
        )
    assert code == 0, output
    sent = read_trace(file)
    assert [request.output_tokens for request in sent] == [3] * 4
    assert {request.session for request in sent} == {"client-0", "client-1"}


def test_a_workload_without_time_has_no_requests() -> None:
    assert not Workload(1.0, 1e-9).requests()


@pytest.mark.slow
def test_the_command_compares_itself_with_an_engine_of_this_process(costs: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    code, output = bench(
        *("--simulate", "--costs", costs, "--compare-engine", "--clock", "processor", "--model", "demo"),
        *("--content", "agents", "--trace-seconds", "3", "--replica-rate", "5", "--system-tokens", "40"),
        *(
            "--prompt-tokens",
            "8",
            "--output-tokens",
            "3",
            "--think-seconds",
            "0.1",
            "--turns",
            "2",
            "--json",
            str(found),
        ),
    )
    assert code == 0, output
    assert "times what" in output
    said = json.loads(found.read_text())
    engine, [simulated] = said["served"], said["simulated"]
    assert engine["requests"] == simulated["requests"] > 3
    assert engine["throughput"] > 0
    assert simulated["hit_rate"] > 0.3
