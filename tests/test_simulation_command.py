"""`parallm-openai bench --simulate` and what it needs: costs that the real engine has, traces that bench records."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from support.servers import RunningServer, demo_draft, demo_target
from support.simulated import step_costs
from typer.testing import CliRunner

from parallm_openai.bench.servers import HttpTarget
from parallm_openai.cli import app
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation import measuring
from parallm_openai.simulation.measuring import measure, own_core
from parallm_openai.simulation.replay import Prompts, replay, text_tokens
from parallm_openai.simulation.trace import TraceRequest, read_trace
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
        (["--simulate", "--costs", "x", "--measure-costs", "y"], "--measure-costs: measures first"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(arguments: list[str], said: str) -> None:
    code, output = bench(*arguments)
    assert code == 2
    assert said in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--simulate", "--costs", "/nowhere.json"], "/nowhere.json: No such file"),
        (["--simulate", "--costs", "COSTS", "--trace", "/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
        (["--simulate", "--costs", "COSTS", "--trace-seconds", "0.001"], "--trace-seconds: no request comes"),
        (["--measure-costs", "/nowhere/at/all.json"], "--measure-costs: /nowhere/at/all.json"),
        (["--measure-costs", "COSTS", "--url", "http://127.0.0.1:9"], "--measure-costs: measures a model of this"),
    ],
)
def test_what_cannot_end_well_is_not_begun(arguments: list[str], said: str, costs: str) -> None:
    code, output = bench(*(costs if argument == "COSTS" else argument for argument in arguments))
    assert code == 1
    assert said in output


def test_without_simpy_the_command_says_what_to_install(costs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, output = bench("--simulate", "--costs", costs)
    assert code == 1
    assert "needs simpy: pip install '.[simulate]'" in output


def test_costs_are_measured_with_the_real_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROWS": (1, 2),
        "WIDTHS": (1, 3),
        "PROMPT_TOKENS": (8, 16),
        "PROMPT_ROWS": (1, 2),
        "CONTEXTS": (32, 64),
        "DECODE_STEPS": 2,
        "ANSWERS": 3,
        "ANSWER_TOKENS": 12,
    }.items():
        monkeypatch.setattr(measuring, name, value)
    said: list[str] = []
    found = measure(demo_target(), demo_draft(), list(range(20, 400)), said.append, rounds=1, clock=time.process_time)
    assert said
    assert (found.drafter, found.verify.rows, found.verify.sizes) == ("draft_model", (1, 2), (1, 3))
    assert (found.prefill.rows, found.prefill.sizes, found.prefill.contexts) == ((1, 2), (8, 16), (32, 64))
    for grid in (found.verify, found.prefill, found.draft, found.draft_prefill):
        assert grid is not None
        assert all(seconds > 0 for plane in grid.seconds for line in plane for seconds in line)
    assert found.acceptance
    assert all(0 <= rate <= 1 for rate in found.acceptance)


def test_copies_are_neither_measured_nor_compared_with() -> None:
    """What they are worth depends on what is written."""
    core = own_core(demo_target(), EngineConfig(), demo_draft(), time.process_time)
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
