"""`parallm-openai bench`: our server in its modes, and others beside it, round by round in one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, field_validator
from rich.console import Console

from parallm_openai.bench.load import Load
from parallm_openai.bench.report import Series, as_json, plot, table
from parallm_openai.bench.rounds import measure
from parallm_openai.bench.shape import PairShape
from parallm_openai.bench.targets import BenchError, Target, first_model, own_server, peer
from parallm_openai.cli.command import with_settings
from parallm_openai.cli.failure import fail
from parallm_openai.cpu import prepare
from parallm_openai.settings import Flag, NonEmpty, Repeatable, Settings, by_commas

MODES = {
    "plain": {"use_speculative_decoding": "false"},
    "speculative": {"use_speculative_decoding": "true"},
}
PLOT_NEEDS = "needs matplotlib: pip install '.[bench]'"
console = Console()


class TargetSettings(Settings):
    """Which servers to measure."""

    has_variables: ClassVar[bool] = False

    model: Annotated[NonEmpty | None, Flag("Servers", kind="a folder or hub id")] = Field(
        None, description="The model to serve; the bundled demo model if not given."
    )
    draft_model: Annotated[NonEmpty | None, Flag("Servers", kind="a folder or hub id")] = Field(
        None, description="A draft model with the same tokenizer."
    )
    url: Annotated[NonEmpty | None, Flag("Servers", kind="a URL")] = Field(
        None, description="Measure our server that runs there, instead of starting one."
    )
    peers: Annotated[Repeatable, Flag("Servers", name="peer", kind="NAME=URL or NAME=URL#MODEL", repeatable=True)] = (
        Field((), description="Another server to measure as well, which must be running; repeatable.")
    )
    make_model: Annotated[Path | None, Flag("Servers", kind="a folder")] = Field(
        None, description="Write a random-weight pair of models there, and measure it if no other model is given."
    )
    make_only: Annotated[bool, Flag("Servers")] = Field(False, description="Make the model and stop.")


Numbers = BeforeValidator(by_commas)


class LoadSettings(Settings):
    """What to send, and how often."""

    has_variables: ClassVar[bool] = False

    concurrency: Annotated[tuple[int, ...], Numbers, Flag("Load", kind="whole numbers, by commas")] = Field(
        (1, 8, 16), min_length=1, description="How many requests to have running at a time."
    )
    requests: Annotated[int, Flag("Load")] = Field(
        2, ge=1, description="Requests per round, for each one that runs at a time."
    )
    max_tokens: Annotated[int, Flag("Load")] = Field(
        Load.max_tokens, ge=2, description="Tokens to generate per request."
    )
    prompt_words: Annotated[tuple[int, int], Numbers, Flag("Load", kind="two whole numbers, by a comma")] = Field(
        Load.prompt_words, description="The least and the most words of a prompt."
    )
    temperature: Annotated[float, Flag("Load")] = Field(
        Load.temperature, ge=0, le=2, description="Temperature of the requests."
    )
    rate: Annotated[float | None, Flag("Load")] = Field(
        Load.rate, ge=0.01, description="Send so many requests per second, however many are running (an open loop)."
    )
    rounds: Annotated[int, Flag("Load")] = Field(3, ge=1, description="How often to measure everything, in turn.")

    @field_validator("concurrency")
    @classmethod
    def _some(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if min(levels) < 1:
            raise ValueError("at least one request must run at a time")
        return levels

    @field_validator("prompt_words")
    @classmethod
    def _ordered(cls, words: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= words[0] <= words[1]:
            raise ValueError("the first number must be at least 1, and the second no smaller than the first")
        return words


class OutputSettings(Settings):
    """Where to write the results, besides the table."""

    has_variables: ClassVar[bool] = False

    json_file: Annotated[Path | None, Flag("Output", name="json", kind="a file")] = Field(
        None, description="Write all figures there."
    )
    plot_file: Annotated[Path | None, Flag("Output", name="plot", kind="a .svg or .png file")] = Field(
        None, description=f"Draw the throughput there; {PLOT_NEEDS}."
    )


@with_settings()
def bench(servers: TargetSettings, load: LoadSettings, output: OutputSettings, shape: PairShape) -> None:
    """Measure throughput and latency, with and without speculation, beside other servers."""
    try:
        # What can fail soon comes before what takes long.
        if output.plot_file is not None and importlib.util.find_spec("matplotlib") is None:
            raise BenchError(f"--plot {PLOT_NEEDS}")
        peers = [peer(spec) for spec in servers.peers]
        model, draft_model = servers.model, servers.draft_model
        if servers.make_model is not None:
            _make(servers.make_model, shape)
            if servers.make_only:
                return
            model = model or str(servers.make_model / "target")
            draft_model = draft_model or str(servers.make_model / "draft")
        with ExitStack() as stack:
            arguments = _arguments(model, draft_model, max(load.concurrency))
            address = servers.url or stack.enter_context(own_server(arguments))
            series = _measured([*_own(address.rstrip("/")), *peers], load, shape.seed)
        _report(series, load, output)
    except (BenchError, ValueError, OSError) as error:
        fail(str(error))


def _make(folder: Path, shape: PairShape) -> None:
    prepare()
    from parallm_openai.bench.make_model import make_pair

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


def _measured(targets: Sequence[Target], settings: LoadSettings, seed: int) -> list[Series]:
    load = Load(
        "",
        0,
        rate=settings.rate,
        max_tokens=settings.max_tokens,
        prompt_words=settings.prompt_words,
        temperature=settings.temperature,
        seed=seed,
    )
    return measure(
        targets,
        settings.concurrency,
        load,
        requests=settings.requests,
        rounds=settings.rounds,
        say=lambda text: console.print(text, style="dim"),
    )


def _report(series: Sequence[Series], load: LoadSettings, output: OutputSettings) -> None:
    console.print(table(series, series[0]))
    if output.json_file is not None:
        shown = load.model_dump(mode="json", include={"max_tokens", "prompt_words", "temperature", "rate"})
        output.json_file.write_text(as_json(series, shown))
    if output.plot_file is not None:
        plot(series, output.plot_file)
