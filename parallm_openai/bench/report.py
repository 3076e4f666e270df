"""Several rounds of several targets as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from parallm_openai.bench.load import Measurement


@dataclass
class Series:
    """All rounds of one target at one concurrency."""

    name: str
    concurrency: int
    label: str
    rounds: list[Measurement] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0

    def median(self, figure: str) -> float:
        return statistics.median(getattr(measured, figure) for measured in self.rounds)

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None


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


def table(series: Sequence[Series], reference: Series) -> Table:
    """Medians over the rounds; ratios are paired with the reference's rounds, with their spread."""
    made = Table(
        title=f"medians of {len(reference.rounds)} rounds; x is against {reference.label}, c={reference.concurrency}"
    )
    for heading in (
        "",
        "c",
        "tok/s",
        "x",
        "TTFT p50/p95 ms",
        "ITL p50/p95 ms",
        "latency p50/p95 ms",
        "accepted",
        "errors",
    ):
        made.add_column(heading, justify="left" if not heading else "right")
    for one in series:
        ratio = Ratio.of(one, reference)
        made.add_row(
            one.label,
            str(one.concurrency),
            f"{one.median('throughput'):.1f}",
            str(ratio or ""),
            f"{one.median('ttft_p50'):.0f} / {one.median('ttft_p95'):.0f}",
            f"{one.median('itl_p50'):.1f} / {one.median('itl_p95'):.1f}",
            f"{one.median('latency_p50'):.0f} / {one.median('latency_p95'):.0f}",
            "" if one.acceptance is None else f"{one.acceptance:.2f}",
            str(sum(measured.errors for measured in one.rounds)),
        )
    return made


def as_json(series: Sequence[Series], settings: dict[str, Any]) -> str:
    rows = [
        {
            "name": one.name,
            "mode": one.label,
            "concurrency": one.concurrency,
            "acceptance": one.acceptance,
            "throughput_median": one.median("throughput"),
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

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(one.name for one in series):
        points = sorted((one.concurrency, one.median("throughput")) for one in series if one.name == name)
        axes.plot([c for c, _ in points], [rate for _, rate in points], marker="o", label=name)
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel("output tokens per second")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
