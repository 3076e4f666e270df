"""Tables, JSON and a picture of simulated runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from parallm_openai.simulation.figures import Figures

COMPARED = {
    "TTFT p50, ms": "ttft_p50",
    "TTFT p99, ms": "ttft_p99",
    "ITL p50, ms": "itl_p50",
    "ITL p99, ms": "itl_p99",
    "tok/s": "throughput",
}
# The client of a server does not see them.
SHARES = {"hits": "hit_rate"}


def table(figures: Sequence[Figures]) -> Table:
    """A line for each fleet; fits 80 columns."""
    made = _table(
        "simulated; TTFT and ITL in ms, replica-hours a million output tokens",
        ("replicas", "router", "TTFT\np50/p99", "ITL\np50/p99", "tok/s", "h/Mtok", "hits", "busiest", "µs"),
    )
    for each in figures:
        made.add_row(
            f"{each.replicas}{'' if each.exact else '*'}",
            each.router,
            f"{each.ttft_p50:.0f}/{each.ttft_p99:.0f}",
            f"{each.itl_p50:.1f}/{each.itl_p99:.0f}",
            f"{each.throughput:.0f}",
            f"{each.replica_hours:.2f}",
            f"{each.hit_rate:.0%}",
            f"{each.busiest:.1f}x",
            f"{each.router_us:.0f}",
        )
    if not all(each.exact for each in figures):
        made.caption = "* all replicas coarsely, and a sample of them by the engine's steps"
    return made


def comparison(simulated: Figures, seen: Figures) -> Table:
    """The simulation beside the server."""
    made = _table(f"{seen.requests} requests, simulated and {seen.router}", ("", "simulated", seen.router, "error"))
    for name, figure in COMPARED.items():
        expected, real = getattr(simulated, figure), getattr(seen, figure)
        made.add_row(name, f"{expected:.1f}", f"{real:.1f}", f"{expected / real - 1:+.0%}" if real else "")
    for name, figure in SHARES.items():
        if real := getattr(seen, figure):
            made.add_row(name, f"{getattr(simulated, figure):.0%}", f"{real:.0%}", "")
    return made


def _table(title: str, headings: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="left" if heading in ("", "router") else "right", no_wrap=place == 1)
    return made


def as_json(settings: dict[str, Any], figures: Sequence[Figures], served: Figures | None = None) -> str:
    found = {"settings": settings, "simulated": [asdict(each) for each in figures]}
    return json.dumps(found if served is None else found | {"served": asdict(served)}, indent=2)


def plot(figures: Sequence[Figures], file: Path) -> None:
    """Time to first token (p99) and hits over the number of replicas, a line a router. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (waits, hits) = pyplot.subplots(1, 2, figsize=(10, 4))
    for router in dict.fromkeys(each.router for each in figures):
        ours = [each for each in figures if each.router == router]
        sizes = [each.replicas for each in ours]
        waits.plot(sizes, [each.ttft_p99 / 1e3 for each in ours], marker="o", label=router)
        hits.plot(sizes, [100 * each.hit_rate for each in ours], marker="o", label=router)
    waits.set(ylabel="time to first token, p99, seconds", yscale="log")
    hits.set(ylabel="prompt tokens from stored prefixes, %", ylim=(0, 100))
    for axes in (waits, hits):
        axes.set(xlabel="replicas", xscale="log")
        axes.grid(alpha=0.3)
    waits.legend()
    picture.tight_layout()
    picture.savefig(file)
    pyplot.close(picture)
