"""The benchmark counts what a server counts, and its models agree as often as asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlx_lm import load as load_with_mlx_lm
from support.servers import RunningServer
from typer.testing import CliRunner

from parallm_openai.bench.load import Load, Measurement, Sample, percentile, run_load
from parallm_openai.bench.make_model import TOLERANCE, make_pair
from parallm_openai.bench.report import Ratio, Series
from parallm_openai.bench.shape import PairShape
from parallm_openai.bench.targets import BenchError, peer
from parallm_openai.cli import app

TINY = PairShape(hidden=64, layers=4, ffn=128, heads=4, vocab=512, draft_layers=1)


@pytest.mark.slow
@pytest.mark.parametrize("agreement", [0.5, 0.9])
def test_a_made_draft_agrees_as_often_as_asked(tmp_path: Path, agreement: float) -> None:
    shape = PairShape(**{**TINY.__dict__, "agreement": agreement})
    measured = make_pair(tmp_path, shape)
    assert abs(measured - agreement) <= 2 * TOLERANCE
    target, tokenizer = load_with_mlx_lm(str(tmp_path / "target"))
    draft, _ = load_with_mlx_lm(str(tmp_path / "draft"))
    assert (len(target.layers), len(draft.layers)) == (4, 1)
    assert len(tokenizer) == 512
    assert tokenizer.decode(tokenizer.encode("Zoë 日本 🙂")) == "Zoë 日本 🙂"


@pytest.mark.slow
def test_a_hostile_draft_never_agrees(tmp_path: Path) -> None:
    assert make_pair(tmp_path, PairShape(**{**TINY.__dict__, "agreement": 0.0})) < 0.05


@pytest.mark.slow
def test_the_same_seed_makes_the_same_pair(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_pair(tmp_path / name, TINY)
    files = [tmp_path / name / "target" / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("change", [{"hidden": 30}, {"draft_layers": 4}, {"draft_layers": 0}, {"vocab": 100}])
def test_impossible_shapes_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"hidden|draft|vocab"):
        make_pair(tmp_path, PairShape(**{**TINY.__dict__, **change}))


@pytest.mark.parametrize("rate", [None, 50.0])
def test_tokens_are_those_that_the_server_counts(server: RunningServer, rate: float | None) -> None:
    load = Load("parallm-demo", 6, concurrency=3, rate=rate, max_tokens=9, extra={"ignore_eos": True})
    measured = run_load(server.url, load)
    assert (measured.requests, measured.errors, measured.tokens) == (6, 0, 54)
    assert measured.throughput == pytest.approx(54 / measured.seconds)
    assert 0 < measured.ttft_p50 <= measured.latency_p50


def test_refused_requests_are_errors_not_samples(server: RunningServer) -> None:
    measured = run_load(server.url, Load("no-such-model", 3))
    assert (measured.errors, measured.tokens, measured.throughput) == (3, 0, 0.0)


def test_figures_of_known_samples() -> None:
    samples = [Sample(tokens=5, chunks=[0.1, 0.2, 0.5], latency=0.6), Sample(error="500")]
    measured = Measurement.of(samples, 2.0)
    assert measured.errors == 1
    assert measured.throughput == 2.5
    assert measured.ttft_p50 == pytest.approx(100)
    assert measured.itl_p50 == pytest.approx(100)
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([], 95) == 0.0


def test_ratios_are_paired_round_by_round() -> None:
    def series(*rates: float) -> Series:
        made = Series("s", 1, "s")
        made.rounds = [Measurement.of([Sample(tokens=int(rate))], 1.0) for rate in rates]
        return made

    ratio = Ratio.of(series(10, 40, 90), series(10, 20, 30))
    assert ratio == Ratio(2.0, 1.0, 3.0)


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


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "does not list its models" in result.output


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
        (["--prompt-words", "8,4"], "--prompt-words: the first number must be at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
