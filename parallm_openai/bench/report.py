"""Several rounds of several targets as tables, as JSON and as a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from parallm_openai.bench.load import GREEDY, Sampling
from parallm_openai.bench.samples import Measurement, Waits
from parallm_openai.bench.targets import Way

WAYS: dict[Way, str] = {"streamed": "HTTP", "whole": "HTTP, not streamed", "in-process": "in process"}


@dataclass
class Series:
    """All rounds of one target at one concurrency, sampled in one way."""

    name: str
    way: Way = "streamed"
    concurrency: int = 1
    sampling: Sampling = GREEDY
    rounds: list[Measurement] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0

    @property
    def mode(self) -> str:
        """What a run of our own server shows: neither way of being fast, one of them, or both."""
        alone = self.concurrency == 1
        modes = {"plain": "baseline" if alone else "batching", "speculative": "speculative" if alone else "both"}
        return modes.get(self.name, self.name)

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    @property
    def throughput(self) -> float:
        return statistics.median(measured.throughput for measured in self.rounds)

    @property
    def client_share(self) -> float | None:
        """The median of how much of a processor core the clients took."""
        return _median(
            None if measured.client_seconds is None else measured.client_seconds / measured.seconds
            for measured in self.rounds
        )

    @property
    def errors(self) -> int:
        return sum(measured.errors for measured in self.rounds)

    def waits(self, *, long: bool) -> list[Waits]:
        """Those of each round, of the long prompts or the others."""
        return [waits for measured in self.rounds if (waits := measured.long if long else measured.short) is not None]


@dataclass(frozen=True)
class Ratio:
    """Throughput of one series over another's, round by round."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, mine: Series, other: Series) -> Ratio | None:
        pairs = [a.throughput / b.throughput for a, b in zip(mine.rounds, other.rounds, strict=True) if b.throughput]
        return cls(statistics.median(pairs), min(pairs), max(pairs)) if pairs else None

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


def tables(series: Sequence[Series]) -> list[Table]:
    """Throughput and waits for each way of sampling and, if there are several, their throughput side by side.

    Each fits 80 columns.
    """
    samplings = list(dict.fromkeys(one.sampling for one in series))
    labels = _labels(series)
    made = []
    for sampling in samplings:
        ours = [one for one in series if one.sampling == sampling]
        made += [_throughput(ours, labels), _waits(ours, labels)]
    return [*made, _side_by_side(series, samplings, labels)] if len(samplings) > 1 else made


def _labels(series: Sequence[Series]) -> dict[int, str]:
    """What to call each series; how answers came is said only if they came in several ways."""
    several = len({one.way for one in series}) > 1
    return {id(one): f"{one.mode}, {WAYS[one.way]}" if several else one.mode for one in series}


def _throughput(series: Sequence[Series], labels: dict[int, str]) -> Table:
    """Medians over the rounds; ratios are paired with the first series' rounds, with their spread."""
    first = series[0]
    made = _table(
        f"{first.sampling}: medians, rounds: {len(first.rounds)}; x against {labels[id(first)]}, c={first.concurrency}",
        ("", "c", "tok/s", "x", "accepted", "client\nCPU", "errors"),
    )
    for one in series:
        made.add_row(
            labels[id(one)],
            str(one.concurrency),
            f"{one.throughput:.1f}",
            str(Ratio.of(one, first) or ""),
            _shown(one.acceptance, ".2f"),
            _shown(one.client_share, ".0%"),
            str(one.errors),
        )
    return made


def _waits(series: Sequence[Series], labels: dict[int, str]) -> Table:
    """Medians over the rounds, and the longest gap of all rounds; long prompts have lines of their own."""
    made = _table(
        f"{series[0].sampling}: waits in ms",
        (
            "",
            "c",
            "prompt\ntokens",
            "TTFT\np50/p95",
            "ITL\np50/p95",
            "longest gap\np50/max",
            "latency\np50/p95",
        ),
    )
    for one in series:
        for long in (False, True):
            if waits := one.waits(long=long):
                label, level = ("  long prompts", "") if long else (labels[id(one)], str(one.concurrency))
                made.add_row(label, level, *_wait_cells(waits))
    return made


def _wait_cells(waits: Sequence[Waits]) -> list[str]:
    def median(figure: str) -> float | None:
        return _median(getattr(each, figure) for each in waits)

    gap_max = max((each.gap_max for each in waits if each.gap_max is not None), default=None)
    return [
        _shown(median("prompt_tokens"), ".0f"),
        _pair(median("ttft_p50"), median("ttft_p95")),
        _pair(median("itl_p50"), median("itl_p95")),
        _pair(median("gap_p50"), gap_max),
        _pair(median("latency_p50"), median("latency_p95")),
    ]


def _side_by_side(series: Sequence[Series], samplings: Sequence[Sampling], labels: dict[int, str]) -> Table:
    """A line for each target and concurrency, a column for each way of sampling."""
    made = _table("output tokens a second", ("", "c", *map(str, samplings)))
    lines: dict[tuple[str, Way, int], list[Series]] = {}
    for one in series:
        lines.setdefault((one.name, one.way, one.concurrency), []).append(one)
    for line in lines.values():
        found = {one.sampling: f"{one.throughput:.1f}" for one in line}
        made.add_row(labels[id(line[0])], str(line[0].concurrency), *(found[sampling] for sampling in samplings))
    return made


def _table(title: str, headings: Iterable[str]) -> Table:
    made = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for heading in headings:
        # Of what is too wide, the labels wrap.
        made.add_column(heading, justify="right" if heading else "left", no_wrap=False, overflow="fold")
    return made


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _pair(one: float | None, other: float | None) -> str:
    """Two times, of which small ones show a tenth."""
    if one is None or other is None:
        return ""
    return "/".join(f"{each:.1f}" if each < 10 else f"{each:.0f}" for each in (one, other))


def as_json(series: Sequence[Series], settings: dict[str, Any]) -> str:
    rows = [
        {
            "name": one.name,
            "mode": one.mode,
            "way": one.way,
            "concurrency": one.concurrency,
            "sampling": asdict(one.sampling),
            "acceptance": one.acceptance,
            "throughput_median": one.throughput,
            "rounds": [asdict(measured) for measured in one.rounds],
        }
        for one in series
    ]
    return json.dumps({"settings": settings, "series": rows}, indent=2)


def plot(series: Sequence[Series], file: Path) -> None:
    """Throughput over concurrency, a line a target, as SVG or PNG by the file's ending. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    several = len({one.sampling for one in series}) > 1
    lines: dict[str, list[tuple[int, float]]] = {}
    for one in series:
        name = one.name if one.way == "streamed" else f"{one.name}, {WAYS[one.way]}"
        lines.setdefault(f"{name}, {one.sampling}" if several else name, []).append((one.concurrency, one.throughput))
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, points in lines.items():
        levels, rates = zip(*sorted(points), strict=True)
        axes.plot(levels, rates, marker="o", label=name)
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel("output tokens per second")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
