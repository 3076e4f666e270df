"""Measures what each rule of the draft length is worth: removes every rule in turn, in every simulated regime.

    PYTHONPATH=tests python scripts/ablate_draft_length.py --seeds 8 --json ablation.json

It prints the two tables of docs/draft_length.md. What is in the JSON file already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from support.draft_length_simulation import LIMIT, REGIMES, FixedLength, Server

from parallm_openai.engine.speculation.draft_length import DraftLength, step_cost
from parallm_openai.engine.speculation.draft_length.exploration import Exploration, R
from parallm_openai.engine.speculation.draft_length.step_cost import CostModel, Timing
from parallm_openai.engine.speculation.draft_length.tuning import DEFAULT, Tuning

ALL_RULES = "all rules"
FIXED = [f"fixed {length}" for length in range(LIMIT + 1)]
NEVER = 1e12

Found = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Without:
    """Removes a rule: by numbers that make it idle, or by putting other code in its place."""

    numbers: dict[str, Any] = field(default_factory=dict)
    code: tuple[tuple[Any, str, Any], ...] = ()


def numbers(**changes: float) -> Without:
    return Without(changes)


def code(owner: Any, name: str, instead: Any) -> Without:
    return Without(code=((owner, name, instead),))


_prefill = Exploration.prefill
_learn_step = Exploration.learn
_learn_timing = Timing.learn


def _seconds_as_measured(self: CostModel, rows: int, longest: int, context: int) -> np.ndarray:
    draft = self.draft.estimate(rows, 1, context)
    seconds = np.full((longest + 1, longest + 1), np.inf)
    for verified in range(longest + 1):
        for computed in range(verified + 1):
            took = computed * draft + self.verify.estimate(rows, 1 + verified, context)
            seconds[verified, computed] = max(1e-9, took)
    return seconds


def _no_memory_of_seconds(self: Exploration, *step: Any) -> None:
    _learn_step(self, *step)
    self._draft_seconds = 0.0


def _not_drafted_at_once(self: Exploration, rows: Sequence[R]) -> Sequence[R]:
    chosen = _prefill(self, rows)
    self._undrafted = frozenset()
    return chosen


def _draft_uncharged(self: Exploration, *step: Any) -> None:
    charged = self._prefill_seconds
    _learn_step(self, *step)
    self._prefill_seconds = charged


def _second_replaces(self: Timing, seconds: float, tuning: Tuning) -> None:
    if self.count == 1:
        self.seconds = seconds
    _learn_timing(self, seconds, tuning)


RULES: dict[str, Without] = {
    "margin between lengths": numbers(margin=0.0),
    "plain step measured again": numbers(doubt=-2.0),
    "... only if in doubt": numbers(doubt=NEVER),
    "rows cut short (least chance)": numbers(least_chance=0.0),
    "row's own rate": numbers(row_prior_trials=NEVER),
    "row's rate drawn to the average": numbers(row_prior_trials=1e-9),
    "row's memory is short": numbers(row_memory=NEVER),
    "average's memory is short": numbers(average_memory=NEVER),
    "wider never counts as cheaper": code(CostModel, "seconds", _seconds_as_measured),
    "longest draft measured first": code(
        CostModel, "unmeasured", lambda self, longest: None if self.verify.known(1) else 0
    ),
    "slow steps clipped": numbers(outlier=NEVER),
    "second timing replaces a slow first": code(step_cost, "Timing", lambda seconds: Timing(seconds, 2)),
    "... only if it is faster": code(Timing, "learn", _second_replaces),
    "costs by context": code(step_cost, "context_bucket", lambda context: 0),
    "the fit's prior": numbers(fit_prior=1e-9),
    "exploring drafts": numbers(draft_share=-1.0),
    "... remember what the last one took": code(Exploration, "learn", _no_memory_of_seconds),
    "exploring prompts": numbers(prefill_share=-1.0),
    "... a few at once": numbers(prefill_rows=1000),
    "... drafted for at once": code(Exploration, "prefill", _not_drafted_at_once),
    "... whose draft is charged": code(Exploration, "learn", _draft_uncharged),
    "prompts read only if drafts are expected": code(DraftLength, "expects_drafts", lambda *asked: True),
}


def measure(name: str, seed: int) -> dict[str, float]:
    """Tokens per unit of time in each regime, for a fixed draft length or without one of the rules."""
    make: Callable[[], Any]
    with ExitStack() as stack:
        if name in FIXED:
            make = partial(FixedLength, FIXED.index(name))
        else:
            without = RULES.get(name, Without())
            for target in without.code:
                stack.enter_context(patch.object(*target))
            make = partial(DraftLength, replace(DEFAULT, **without.numbers))
        return {regime.name: Server(regime, make(), seed).run(regime.time) for regime in REGIMES}


def measure_all(found: Found, seeds: Sequence[int], processes: int, file: Path) -> None:
    names = [ALL_RULES, *FIXED, *RULES]
    with ProcessPoolExecutor(processes) as pool:
        missing = [(name, seed) for seed in seeds for name in names if str(seed) not in found.get(name, {})]
        jobs = [(name, seed, pool.submit(measure, name, seed)) for name, seed in missing]
        for name, seed, job in jobs:
            found.setdefault(name, {})[str(seed)] = job.result()
            file.write_text(json.dumps(found))


def percent(found: Found, name: str, base: str, regime: str) -> tuple[float, float]:
    """By how many percent `name` is faster than `base`, and the standard error of that."""
    gains = [100 * (rates[regime] / found[base][seed][regime] - 1) for seed, rates in found[name].items()]
    return statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan


def regimes_table(found: Found) -> str:
    lines = ["| regime | best fixed length | no drafts | all rules |", "| --- | --- | --- | --- |"]
    for regime in (regime.name for regime in REGIMES):
        means = {name: statistics.mean(run[regime] for run in found[name].values()) for name in (*FIXED, ALL_RULES)}
        best = max(FIXED, key=means.__getitem__)
        plain, ours = means[FIXED[0]] / means[best], means[ALL_RULES] / means[best]
        lines.append(f"| {regime} | {FIXED.index(best)} | {plain:.2f} | {ours:.2f} |")
    return "\n".join(lines)


def rules_table(found: Found) -> str:
    lines = ["| without | mean of all regimes | worst regime | best regime |", "| --- | --- | --- | --- |"]
    for name in RULES:
        if name not in found:
            continue
        each = sorted((*percent(found, name, ALL_RULES, regime.name), regime.name) for regime in REGIMES)
        mean = statistics.mean(gain for gain, _, _ in each)
        error = math.sqrt(sum(error**2 for _, error, _ in each)) / len(each)
        worst, best = (f"{gain:+.1f} ± {error:.1f}: {regime}" for gain, error, regime in (each[0], each[-1]))
        lines.append(f"| {name} | {mean:+.2f} ± {error:.2f} | {worst} | {best} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="how many runs of everything")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True, help="keeps what was measured")
    arguments = parser.parse_args()
    found: Found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    measure_all(found, range(1, arguments.seeds + 1), arguments.processes, arguments.json)
    print(regimes_table(found), rules_table(found), sep="\n\n")


if __name__ == "__main__":
    main()
