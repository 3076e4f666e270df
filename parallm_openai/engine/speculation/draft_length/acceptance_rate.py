"""How many drafted tokens will be accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Protocol

from parallm_openai.engine.speculation.draft_length.tuning import Tuning


@dataclass(slots=True)
class AcceptanceRate:
    """The share of drafted tokens that were accepted: a running mean over about the last `memory` trials."""

    memory: float
    mean: float = 0.0
    trials: float = 0.0

    def learn(self, accepted: int, trials: int) -> None:
        """Take in so many trials, of which so many were accepted."""
        if trials:
            weight = min(self.trials, self.memory)
            self.mean = (self.mean * weight + accepted) / (weight + trials)
            self.trials = weight + trials


class DraftedRow(Protocol):
    """All that the draft length needs to know of a row."""

    @property
    def id(self) -> int: ...

    # The row's own rate; None before its first draft.
    acceptance: AcceptanceRate | None


class AcceptanceEstimator:
    """Each row's own acceptance rate, completed by the average of all rows at each depth.

    The first drafted token of a step has depth 0.
    """

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.by_depth: list[AcceptanceRate] = []

    def chances(self, rows: Sequence[DraftedRow], limits: Sequence[int]) -> list[list[float]]:
        """For each row and each depth below its limit, the probability that the drafted token is accepted.

        A token is accepted only together with all before it, so that the probability at depth `d` is the product
        `r[0] * r[1] * ... * r[d]` of the rates `r[i] = w * own + (1 - w) * average[i]`. The weight of the row's own
        rate, `w = trials / (trials + row_prior_trials)`, grows with its trials.
        """
        averages = self.averages(max(limits, default=0))
        return [self._row_chances(row, averages[:limit]) for row, limit in zip(rows, limits, strict=True)]

    def average_chances(self, longest: int) -> list[float]:
        """The same for a row that nothing is known of yet."""
        return list(accumulate(self.averages(longest), mul))

    def _row_chances(self, row: DraftedRow, averages: Sequence[float]) -> list[float]:
        own = row.acceptance
        if own is None:
            return list(accumulate(averages, mul))
        weight = own.trials / (own.trials + self.tuning.row_prior_trials)
        known, rest = weight * own.mean, 1 - weight
        return list(accumulate([known + rest * average for average in averages], mul))

    def averages(self, longest: int) -> list[float]:
        """The average acceptance rate at each depth below `longest`; a new depth begins with that of the one before."""
        while len(self.by_depth) < longest:
            guess = self.by_depth[-1].mean if self.by_depth else self.tuning.first_guess
            self.by_depth.append(AcceptanceRate(self.tuning.average_memory, guess))
        return [rate.mean for rate in self.by_depth[:longest]]

    def learn(self, row: DraftedRow, drafted: int, accepted: int) -> None:
        """Take in one row's draft."""
        trials = min(accepted + 1, drafted)
        if row.acceptance is None:
            row.acceptance = AcceptanceRate(self.tuning.row_memory)
        row.acceptance.learn(accepted, trials)
        self.averages(trials)
        for depth in range(trials):
            self.by_depth[depth].learn(int(depth < accepted), 1)


def expected_tokens(chances: Sequence[Sequence[float]], longest: int) -> list[float]:
    """The tokens that one step should yield at each draft length from 0 to `longest`.

    Every row yields one token, and each of its drafted tokens with the probability that it is accepted:
    `E(k) = sum over rows of (1 + chances[0] + ... + chances[k - 1])`.
    """
    by_depth = [0.0] * longest
    for row in chances:
        for depth, chance in enumerate(row):
            by_depth[depth] += chance
    return list(accumulate(by_depth, initial=float(len(chances))))
