"""How many drafted tokens will be accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class DepthRates:
    """The average acceptance rate at each depth; the first drafted token of a step has depth 0."""

    tuning: Tuning
    rates: list[AcceptanceRate] = field(default_factory=list)

    def means(self, longest: int) -> list[float]:
        """The rate at each depth below `longest`; a new depth begins with that of the one before."""
        while len(self.rates) < longest:
            guess = self.rates[-1].mean if self.rates else self.tuning.first_guess
            self.rates.append(AcceptanceRate(self.tuning.average_memory, guess))
        return [rate.mean for rate in self.rates[:longest]]

    def learn(self, drafted: int, accepted: int) -> None:
        """Take in one draft."""
        trials = min(accepted + 1, drafted)
        self.means(trials)
        for depth in range(trials):
            self.rates[depth].learn(int(depth < accepted), 1)


class AcceptanceEstimator:
    """Each row's own acceptance rate, completed by the average of all rows at each depth."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.averages = DepthRates(tuning)

    def chances(self, rows: Sequence[DraftedRow], limits: Sequence[int]) -> list[list[float]]:
        """For each row and each depth below its limit, the probability that the drafted token is accepted.

        A token is accepted only together with all before it, so that the probability at depth `d` is the product
        `r[0] * r[1] * ... * r[d]` of the rates `r[i] = w * own + (1 - w) * average[i]`. The weight of the row's own
        rate, `w = trials / (trials + row_prior_trials)`, grows with its trials.
        """
        averages = self.averages.means(max(limits, default=0))
        return [self._row_chances(row, averages[:limit]) for row, limit in zip(rows, limits, strict=True)]

    def average_chances(self, longest: int) -> list[float]:
        """The same for a row that nothing is known of yet."""
        return list(accumulate(self.averages.means(longest), mul))

    def _row_chances(self, row: DraftedRow, averages: Sequence[float]) -> list[float]:
        own = row.acceptance
        if own is None:
            return list(accumulate(averages, mul))
        weight = own.trials / (own.trials + self.tuning.row_prior_trials)
        known, rest = weight * own.mean, 1 - weight
        return list(accumulate([known + rest * average for average in averages], mul))

    def learn(self, row: DraftedRow, drafted: int, accepted: int) -> None:
        """Take in one row's draft."""
        if row.acceptance is None:
            row.acceptance = AcceptanceRate(self.tuning.row_memory)
        row.acceptance.learn(accepted, min(accepted + 1, drafted))
        self.averages.learn(drafted, accepted)
