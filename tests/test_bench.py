"""The benchmark counts what a server counts, and reports it in tables that fit a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.servers import RunningServer, demo_draft, demo_target
from typer.testing import CliRunner

from parallm_openai.bench.in_process import InProcessTarget, local_engine
from parallm_openai.bench.load import STANDARD, Load, Sampling
from parallm_openai.bench.report import WAYS, Ratio, Series, tables
from parallm_openai.bench.run import run_load
from parallm_openai.bench.samples import Measurement, Sample, Waits, percentile
from parallm_openai.bench.servers import HttpTarget, peer
from parallm_openai.bench.targets import BenchError, Way
from parallm_openai.cli import app
from parallm_openai.cli.bench_run import MODES


def demo(server: RunningServer, **changes: Any) -> HttpTarget:
    """The server as a target, whose answers are as long as asked for."""
    return HttpTarget("demo", server.url, "parallm-demo", extra={"ignore_eos": True}, **changes)


@pytest.mark.parametrize("rate", [None, 50.0])
def test_tokens_are_those_that_the_server_counts(server: RunningServer, rate: float | None) -> None:
    measured = run_load(demo(server), Load(6, concurrency=3, rate=rate, max_tokens=9))
    assert (measured.requests, measured.errors, measured.tokens) == (6, 0, 54)
    assert measured.throughput == pytest.approx(54 / measured.seconds)
    waits = measured.short
    assert waits.ttft_p50 is not None
    assert waits.latency_p50 is not None
    assert 0 < waits.ttft_p50 <= waits.latency_p50


def test_refused_requests_are_errors_not_samples(server: RunningServer) -> None:
    measured = run_load(replace(demo(server), model="no-such-model"), Load(3))
    assert (measured.errors, measured.tokens, measured.throughput) == (3, 0, 0.0)


@pytest.mark.parametrize("way", ["streamed", "whole"])
def test_sampled_answers_and_long_prompts_are_measured_either_way(server: RunningServer, way: Way) -> None:
    sampling = Sampling(0.7, top_p=0.95, top_k=20, min_p=0.01, logprobs=3)
    load = Load(6, concurrency=3, max_tokens=5, sampling=sampling, long_prompts=1, long_words=90, prompt_words=(2, 4))
    measured = run_load(demo(server, way=way), load)
    assert (measured.errors, measured.tokens, measured.first_error) == (0, 30, None)
    short, long = measured.short, measured.long
    assert long is not None
    assert (short.requests, long.requests) == (5, 1)
    assert short.prompt_tokens is not None
    assert long.prompt_tokens is not None
    assert long.prompt_tokens > 5 * short.prompt_tokens
    # Only a stream has a first text before its end.
    assert (short.ttft_p50 is None) == (short.gap_max is None) == (way == "whole")
    assert measured.client_seconds is not None


@pytest.mark.parametrize("mode", [MODES["plain"], MODES["speculative"]], ids=["plain", "speculative"])
def test_the_engine_in_this_process_answers_the_same_loads(mode: dict[str, str]) -> None:
    sampling = Sampling(0.7, top_p=0.95, logprobs=2)
    with local_engine(demo_target(), demo_draft(), rows=2) as local:
        target = InProcessTarget("here", local, mode)
        target.prepare()
        measured = run_load(target, Load(4, concurrency=2, max_tokens=30, sampling=sampling))
        drafted, accepted = target.drafted()
    assert (measured.errors, measured.tokens) == (0, 120)
    assert measured.short.gap_max is not None
    # What the clients themselves take cannot be told from what the engine takes.
    assert measured.client_seconds is None
    assert (drafted == 0) or mode == MODES["speculative"]
    assert accepted <= drafted


def test_the_engine_in_this_process_says_why_it_refuses_a_request() -> None:
    with local_engine(demo_target(), None, rows=2) as local:
        measured = run_load(InProcessTarget("here", local, MODES["plain"]), Load(2, max_tokens=10**9))
    assert measured.errors == 2
    assert measured.first_error is not None
    assert "RequestError" in measured.first_error


def test_figures_of_known_samples() -> None:
    samples = [
        Sample(tokens=5, chunks=[0.1, 0.2, 0.5], latency=0.6),
        Sample(tokens=3, chunks=[0.1, 0.2, 0.3], latency=0.4),
        Sample(tokens=2, chunks=[2.0, 2.1], latency=2.2, long=True, prompt_tokens=8000),
        Sample(error="500"),
    ]
    measured = Measurement.of(samples, 2.0)
    assert measured.errors == 1
    assert measured.throughput == 5
    short, long = measured.short, measured.long
    assert (short.requests, short.prompt_tokens) == (2, None)
    assert short.ttft_p50 == pytest.approx(100)
    assert short.itl_p50 == pytest.approx(100)
    assert short.gap_p50 == pytest.approx(200)
    assert short.gap_max == pytest.approx(300)
    assert long is not None
    assert (long.ttft_p50, long.prompt_tokens) == (2000, 8000)


def test_percentiles_are_between_neighbours() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([1.0, 2.0], 95) == pytest.approx(1.95)
    assert percentile([], 95) is None


def test_ratios_are_paired_round_by_round() -> None:
    def series(*rates: float) -> Series:
        made = Series("s")
        made.rounds = [Measurement.of([Sample(tokens=int(rate))], 1.0) for rate in rates]
        return made

    ratio = Ratio.of(series(10, 40, 90), series(10, 20, 30))
    assert ratio == Ratio(2.0, 1.0, 3.0)


def known_series(name: str, way: Way, sampling: Sampling) -> Series:
    """Figures as wide as they come."""
    short = Waits(16, 23.0, 11736.0, 11758.0, 1234.5, 2345.6, 9876.0, 23456.0, 54321.0, 65432.0)
    long = replace(short, prompt_tokens=16384.0)
    measured = Measurement(16, 0, 1024, 0.1, 10240.0, 0.05, short, long)
    return Series(name, way, 64, sampling, [measured, measured], drafted=100, accepted=99)


def test_tables_fit_eighty_columns_and_break_no_number() -> None:
    names = [("plain", way) for way in WAYS] + [("speculative", way) for way in WAYS] + [("mlx_lm.server", "streamed")]
    series = [known_series(name, way, sampling) for sampling in STANDARD for name, way in names]
    screen = Console(width=80, file=StringIO())
    for table in tables(series):
        screen.print(table)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    cells = [cell for line in lines for cell in line.split()]
    for figure in ("11736/11758", "1234/2346", "9876/23456", "54321/65432", "16384", "10240.0", "(1.00-1.00)", "50%"):
        assert cells.count(figure) >= len(STANDARD) * len(names), figure
    # The last table has a line for each target and a figure for each way of sampling.
    assert sum(line.count("10240.0") == len(STANDARD) for line in lines) == len(names)


def test_what_did_not_occur_is_left_out_of_a_table() -> None:
    whole = Measurement.of([Sample(tokens=4, latency=0.5)], 1.0)
    screen = Console(width=80, file=StringIO())
    for table in tables([Series("other", "whole", rounds=[whole])]):
        screen.print(table)
    printed = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "500/500" in printed
    assert "None" not in printed
    assert "long" not in printed.replace("longest", "")


def test_a_peer_needs_a_name_and_an_address(server: RunningServer) -> None:
    assert peer(f"other={server.url}/v1").model == "parallm-demo"
    assert peer(f"other={server.url}#mine").model == "mine"
    for spec in ("nonsense", "x=ftp://y", "x=http://127.0.0.1:9"):
        with pytest.raises(BenchError):
            peer(spec)


def test_the_command_measures_servers_in_turn_and_writes_what_it_found(server: RunningServer, tmp_path: Path) -> None:
    found, picture = tmp_path / "found.json", tmp_path / "found.svg"
    command = [
        "bench",
        *("--url", server.url, "--peer", f"itself={server.url}", "--concurrency", "1,2"),
        *("--rounds", "2", "--requests", "1", "--max-tokens", "4", "--prompt-words", "2,3"),
        *("--json", str(found), "--plot", str(picture)),
    ]
    with server.configured():
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    series = json.loads(found.read_text())["series"]
    assert [(one["name"], one["concurrency"], len(one["rounds"])) for one in series] == [
        (name, level, 2) for level in (1, 2) for name in ("plain", "speculative", "itself")
    ]
    assert all(measured["errors"] == 0 for one in series for measured in one["rounds"])
    assert picture.read_text().lstrip().startswith("<?xml")


def test_the_standard_table_compares_ways_of_sampling_on_an_engine_of_this_process(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [
        *("bench", "--standard", "--ways", "in-process", "--concurrency", "2", "--rounds", "1"),
        *("--requests", "1", "--max-tokens", "4", "--prompt-words", "2,3", "--json", str(found)),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    series = json.loads(found.read_text())["series"]
    assert [(one["name"], one["sampling"]) for one in series] == [
        (name, asdict(sampling)) for sampling in STANDARD for name in MODES
    ]
    assert "output tokens a second" in result.output


def test_servers_are_told_apart_by_their_names(server: RunningServer) -> None:
    result = CliRunner().invoke(app, ["bench", "--url", server.url, "--peer", f"plain={server.url}"])
    assert result.exit_code == 1
    assert "more than one server would be called plain" in result.stderr


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "does not list its models" in result.output


def test_a_server_that_ends_in_the_middle_is_one_sentence() -> None:
    gone = HttpTarget("gone", "http://127.0.0.1:9", "model", settings={"max_draft_tokens": "3"})
    with pytest.raises(BenchError, match=r"gone does not answer at http://127.0.0.1:9 any more \(.*refused"):
        gone.prepare()
    measured = run_load(replace(gone, settings={}), Load(2))
    assert measured.first_error is not None
    assert "the connection to http://127.0.0.1:9 failed (" in measured.first_error


@pytest.mark.parametrize("spec", ["other=http://127.0.0.1:9", "other=http://127.0.0.1:9#mine"])
def test_a_peer_that_is_not_there_is_found_before_a_model_is_made(tmp_path: Path, spec: str) -> None:
    result = CliRunner().invoke(app, ["bench", "--make-model", str(tmp_path / "pair"), "--peer", spec])
    assert result.exit_code == 1
    assert "the peer other does not answer at http://127.0.0.1:9 (" in result.stderr
    assert "start it first, or leave out its --peer" in result.stderr
    assert not (tmp_path / "pair").exists()


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:9", "--plot", "figure.svg"])
    assert result.exit_code == 1
    assert "--plot needs matplotlib: pip install '.[bench]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", "2"], "--draft-layers: must be less than --layers (2), not 2"),
        (["--hidden", "30"], "--hidden: must be an even multiple of --heads (12), not 30"),
        (["--concurrency", "0"], "--concurrency: at least one request must run at a time"),
        (["--concurrency", "many"], "--concurrency: must be whole numbers, by commas, not 'many'"),
        (["--prompt-words", "8"], "--prompt-words: must be two whole numbers, by a comma, not '8'"),
        (["--ways", "streamed,smoke"], "--ways: must be streamed, whole, in-process, by commas, not 'streamed,smoke'"),
        (
            ["--ways", "in-process", "--url", "http://127.0.0.1:9"],
            "--ways in-process: with --url, needs the same model",
        ),
        (["--standard", "--top-p", "0.5"], "--standard: says how to sample; leave out --top-p"),
        (["--long-prompts", "8"], "--long-prompts: must be fewer than run at a time (--concurrency), which is 1"),
        (["--sharpness", "1"], "--sharpness: must be a number"),
        (["--prompt-words", "8,4"], "--prompt-words: the first number must be at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json", "/nowhere/at/all.json"], "--json: /nowhere/at/all.json"),
        (["--json", "/"], "--json: /"),
        (["--make-only"], "--make-only: needs --make-model"),
        (["--url", "http://[::1"], "--url: 'http://[::1' is no URL"),
        (["--url", "localhost:8080"], "--url: must be a URL such as http://127.0.0.1:8080, not 'localhost:8080'"),
        (["--plot", "figure.txt"], "--plot: must be a .svg or .png file, not 'figure.txt'"),
        (["--json", "same.svg", "--plot", "./same.svg"], "--plot: same.svg is also the file of --json"),
    ],
)
def test_what_cannot_end_well_is_not_begun(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_server_that_was_there_before_is_left_as_it_was(server: RunningServer) -> None:
    with server.configured(use_speculative_decoding=False):
        arguments = ["--url", server.url, "--concurrency", "1", "--requests", "1", "--rounds", "1", "--max-tokens", "2"]
        result = CliRunner().invoke(app, ["bench", *arguments])
        assert result.exit_code == 0, result.stderr
        assert not server.engine.config.use_speculative_decoding
