"""Measures several targets in turn, round by round, so that a machine that changes its speed is fair to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from parallm_openai.bench.load import Load, Sampling
from parallm_openai.bench.report import Series
from parallm_openai.bench.run import Record, run_load
from parallm_openai.bench.targets import BenchError, Target


def measure(
    targets: Sequence[Target],
    levels: Sequence[int],
    samplings: Sequence[Sampling],
    load: Load,
    *,
    requests: int,
    rounds: int,
    say: Callable[[str], None],
    record: Record | None = None,
) -> list[Series]:
    """Every target at every concurrency, sampled in every way, `rounds` times after one round to warm up.

    The order turns with each round. Every run has prompts of its own, because a server that remembers prompts would
    not read them again; their lengths are the same for all targets. `record` takes what each run sent.
    Raises BenchError.
    """
    series = {
        (level, sampling, place): Series(target.name, target.way, level, sampling)
        for sampling in samplings
        for level in levels
        for place, target in enumerate(targets)
    }
    for number in range(-1, rounds):
        for level in levels:
            for sampling in samplings:
                for place in _in_turn(len(targets), number):
                    target = targets[place]
                    say(f"round {number + 1} of {rounds}: {target.name} ({target.way}), {level} at a time, {sampling}")
                    turn = replace(
                        load,
                        count=max(2, level * (requests if number >= 0 else 1)),
                        concurrency=level,
                        sampling=sampling,
                        seed=load.seed + 1000 * (number + 1) + level,
                        text_seed=samplings.index(sampling) * len(targets) + place,
                    )
                    _measure_one(target, turn, None if number < 0 else series[level, sampling, place], record)
    return list(series.values())


def _in_turn(count: int, number: int) -> list[int]:
    shift = number % count
    return [*range(shift, count), *range(shift)]


def _measure_one(target: Target, load: Load, series: Series | None, record: Record | None) -> None:
    """One run of the load, which goes into the series if there is one."""
    target.prepare()
    before = target.drafted()
    measured = run_load(target, load, record)
    if measured.errors == measured.requests:
        raise BenchError(f"every request to {target.name} failed, one with: {measured.first_error}")
    if series is not None:
        after = target.drafted()
        series.rounds.append(measured)
        series.drafted += after[0] - before[0]
        series.accepted += after[1] - before[1]
