"""Measures several servers in turn, round by round, so that a machine that changes its speed is fair to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from parallm_openai.bench.load import Load, run_load
from parallm_openai.bench.report import Series
from parallm_openai.bench.targets import BenchError, Target


def measure(
    targets: Sequence[Target],
    levels: Sequence[int],
    load: Load,
    *,
    requests: int,
    rounds: int,
    say: Callable[[str], None],
) -> list[Series]:
    """Every target at every concurrency, in turn, `rounds` times after one round to warm up. Raises BenchError.

    The order turns with each round. Every round and level has prompts of its own, because a server that remembers
    prompts would not read them again.
    """
    series = {(t.name, level): Series(t.name, level, _mode(t.name, level)) for level in levels for t in targets}
    for number in range(-1, rounds):
        for level in levels:
            seed = load.seed + 1000 * (number + 1) + level
            shift = number % len(targets)
            for target in (*targets[shift:], *targets[:shift]):
                say(f"round {number + 1} of {rounds}: {target.name}, {level} at a time")
                count = max(2, level * (requests if number >= 0 else 1))
                _measure_one(
                    target, replace(load, concurrency=level, requests=count, seed=seed), series, warm=number < 0
                )
    return list(series.values())


def _mode(name: str, concurrency: int) -> str:
    """What a run of our own server shows: neither way of being fast, one of them, or both."""
    alone = concurrency == 1
    modes = {"plain": "baseline" if alone else "batching", "speculative": "speculative" if alone else "both"}
    return modes.get(name, name)


def _measure_one(target: Target, load: Load, series: dict[tuple[str, int], Series], *, warm: bool) -> None:
    target.prepare()
    before = target.drafted()
    measured = run_load(target.url, replace(load, model=target.model, extra=target.extra))
    if measured.errors == measured.requests:
        raise BenchError(f"every request to {target.name} failed, one with: {measured.first_error}")
    if not warm:
        one = series[target.name, load.concurrency]
        after = target.drafted()
        one.rounds.append(measured)
        one.drafted += after[0] - before[0]
        one.accepted += after[1] - before[1]
