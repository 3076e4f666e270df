"""`parallm-openai bench`: our server in its modes, and others beside it, round by round in one run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from parallm_openai.bench.load import Load, run_load
from parallm_openai.bench.report import Series, as_json, plot, table
from parallm_openai.bench.targets import BenchError, Target, first_model, own_server, peer

MODES = {
    "plain": {"use_speculative_decoding": "false"},
    "speculative": {"use_speculative_decoding": "true"},
}
console = Console()


def bench(
    model: Annotated[str | None, typer.Option(help="Folder or hub id to serve; the bundled demo if not given.")] = None,
    draft_model: Annotated[str | None, typer.Option(help="Draft model of the same tokenizer.")] = None,
    url: Annotated[str | None, typer.Option(help="Measure our server running there instead of starting one.")] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--peer", help="NAME=URL or NAME=URL#MODEL of another server; repeatable.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at a time, by commas.")] = "1,8,16",
    requests: Annotated[int, typer.Option(min=1, help="Requests per client of the concurrency and round.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate per request.")] = 64,
    prompt_words: Annotated[str, typer.Option(help="Least and most words of a prompt.")] = "8,64",
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Open loop: requests a second, whatever is running.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured, in turn.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw throughput there, .svg or .png.")] = None,
    make_model: Annotated[
        Path | None, typer.Option(help="Write a random-weight pair there, and measure it if nothing else is given.")
    ] = None,
    hidden: Annotated[int, typer.Option()] = 768,
    layers: Annotated[int, typer.Option()] = 12,
    ffn: Annotated[int, typer.Option()] = 2048,
    heads: Annotated[int, typer.Option()] = 12,
    vocab: Annotated[int, typer.Option()] = 4096,
    draft_layers: Annotated[int, typer.Option()] = 2,
    agreement: Annotated[float, typer.Option(min=0, max=1, help="How often the made draft is to agree.")] = 0.9,
    seed: Annotated[int, typer.Option()] = 0,
    make_only: Annotated[bool, typer.Option(help="Make the model and stop.")] = False,
) -> None:
    """Measure throughput and latency, with and without speculation, beside other servers."""
    try:
        if make_model is not None:
            _make(make_model, hidden, layers, ffn, heads, vocab, draft_layers, agreement, seed)
            if make_only:
                return
            model, draft_model = model or str(make_model / "target"), draft_model or str(make_model / "draft")
        levels = _numbers(concurrency, "--concurrency")
        least, most = _numbers(prompt_words, "--prompt-words")
        load = Load(
            "", 0, rate=rate, max_tokens=max_tokens, prompt_words=(least, most), temperature=temperature, seed=seed
        )
        with ExitStack() as stack:
            address = url or stack.enter_context(own_server(_arguments(model, draft_model, max(levels))))
            targets = [*_own(address.rstrip("/")), *map(peer, peers or [])]
            series = _measure(targets, levels, load, requests, rounds)
        console.print(table(series, series[0]))
        settings = {"max_tokens": max_tokens, "prompt_words": [least, most], "temperature": temperature, "rate": rate}
        if json_file is not None:
            json_file.write_text(as_json(series, settings))
        if plot_file is not None:
            plot(series, plot_file)
    except (BenchError, ValueError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"parallm-openai: {message}", err=True)
    raise typer.Exit(1)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BenchError(f"{option} takes numbers by commas, not {text!r}") from None


def _make(
    folder: Path,
    hidden: int,
    layers: int,
    ffn: int,
    heads: int,
    vocab: int,
    draft_layers: int,
    agreement: float,
    seed: int,
) -> None:
    from parallm_openai.bench.make_model import PairShape, make_pair

    shape = PairShape(hidden, layers, ffn, heads, vocab, draft_layers, agreement, seed)
    measured = make_pair(folder, shape)
    console.print(f"{folder}: a pair whose draft agrees with {measured:.0%} of the target's greedy tokens")


def _arguments(model: str | None, draft_model: str | None, rows: int) -> list[str]:
    """`serve`'s arguments for a server with a row for each client."""
    arguments = ["--max-batch-size", str(rows)]
    if model is not None:
        arguments += ["--model", model]
    if draft_model is not None:
        arguments += ["--draft-model", draft_model]
    return arguments


def _own(url: str) -> list[Target]:
    name = first_model(url)
    extra = {"ignore_eos": True}
    return [Target(mode, url, name, settings, extra) for mode, settings in MODES.items()]


def _measure(targets: Sequence[Target], levels: Sequence[int], load: Load, requests: int, rounds: int) -> list[Series]:
    """Every target at every concurrency, in turn, `rounds` times after one round to warm up.

    In turn, and in a turning order: a machine whose speed drifts drifts for all of them. Every round and
    level has prompts of its own, or a server that remembers prompts would not read them.
    """
    series = {(t.name, level): Series(t.name, level, _mode(t.name, level)) for level in levels for t in targets}
    for number in range(-1, rounds):
        for level in levels:
            seed = load.seed + 1000 * (number + 1) + level
            shift = number % len(targets)
            for target in (*targets[shift:], *targets[:shift]):
                console.print(f"round {number + 1} of {rounds}: {target.name}, {level} at a time", style="dim")
                count = max(2, level * (requests if number >= 0 else 1))
                _measure_one(
                    target, replace(load, concurrency=level, requests=count, seed=seed), series, warm=number < 0
                )
    return list(series.values())


def _mode(name: str, concurrency: int) -> str:
    """What a run of ours shows: neither way of being fast, one of them, or both."""
    alone = concurrency == 1
    modes = {"plain": "baseline" if alone else "batching", "speculative": "speculative" if alone else "both"}
    return modes.get(name, name)


def _measure_one(target: Target, load: Load, series: dict[tuple[str, int], Series], *, warm: bool) -> None:
    target.prepare()
    before = target.drafted()
    measured = run_load(target.url, replace(load, model=target.model, extra=target.extra))
    if measured.errors == measured.requests:
        raise BenchError(f"every request to {target.name} failed")
    if not warm:
        one = series[target.name, load.concurrency]
        after = target.drafted()
        one.rounds.append(measured)
        one.drafted += after[0] - before[0]
        one.accepted += after[1] - before[1]
