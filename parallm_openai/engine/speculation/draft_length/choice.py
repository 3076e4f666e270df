"""The draft lengths that yield the most tokens a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallm_openai.engine.speculation.draft_length.acceptance_rate import (
    AcceptanceEstimator,
    DepthRates,
    DraftedRow,
)
from parallm_openai.engine.speculation.draft_length.exploration import Exploration, R
from parallm_openai.engine.speculation.draft_length.step_cost import CostModel
from parallm_openai.engine.speculation.draft_length.tuning import DEFAULT, Tuning


@dataclass(frozen=True, slots=True)
class Choice:
    """How many tokens to draft for each row, and for which rows to copy them instead of computing them."""

    lengths: list[int]
    copied: list[bool]

    @classmethod
    def none(cls, rows: int) -> Choice:
        return cls([0] * rows, [False] * rows)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest draft of a step, which is verified, and its longest computed one: a forward for each token."""

    verified: int = 0
    computed: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], copied: Sequence[bool]) -> Lengths:
        computed = (0 if copy else length for length, copy in zip(lengths, copied, strict=True))
        return cls(max(lengths, default=0), max(computed, default=0))


@dataclass(frozen=True, slots=True)
class Chances:
    """For each row and each depth, the probability that a token drafted in one of the two ways is accepted.

    None if the row has no such draft.
    """

    computed: Sequence[Sequence[float] | None]
    copied: Sequence[Sequence[float] | None]

    def expected(self, longest: int) -> np.ndarray:
        """The tokens that one step should yield, by its longest draft and its longest computed one.

        Every row yields one token, and those of its drafted ones that are accepted. It takes the draft that promises
        more: `E(k, c) = sum over rows of (1 + max(sum of copied[:k], sum of computed[:c]))`.
        """
        copied, computed = _sums(self.copied, longest), _sums(self.computed, longest)
        rows: np.ndarray = np.maximum(copied[:, :, None], computed[:, None, :]).sum(axis=0)
        return rows + len(copied)

    def best(self, row: int, lengths: Lengths) -> tuple[Sequence[float], bool]:
        """The chances of the draft that a row takes within these lengths, and whether it is copied."""
        copied = (self.copied[row] or ())[: lengths.verified]
        computed = (self.computed[row] or ())[: lengths.computed]
        return (copied, True) if sum(copied) > sum(computed) else (computed, False)


def _sums(chances: Sequence[Sequence[float] | None], longest: int) -> np.ndarray:
    """The sum of each row's first `k` chances, `[rows, longest + 1]`."""
    padded = np.zeros((len(chances), longest + 1))
    for row, own in enumerate(chances):
        if own:
            padded[row, 1 : len(own) + 1] = own
    return padded.cumsum(axis=1)


class DraftLength:
    """Decides from what was learnt, and learns from the steps that were run.

    If rolling back is `deferred`, as recurrent states are, a step without drafts pays for the drafts of the one before.
    So the time of the first such step after drafts says nothing, and a second one follows it.

    `choose` and `expects_drafts` change nothing that a later answer depends on: only `learn` and the two methods that
    explore prompts do.
    """

    def __init__(self, tuning: Tuning = DEFAULT, *, deferred: bool = False) -> None:
        self.tuning = tuning
        self.deferred = deferred
        # Of computed drafts: of a copied one its drafter knows more.
        self.acceptance = AcceptanceEstimator(tuning)
        # Of all drafts, to be reported.
        self.observed = DepthRates(tuning)
        self.costs = CostModel(tuning)
        self.exploration = Exploration(tuning)
        self._steps_by_length: Counter[int] = Counter()
        self._current = Lengths()
        self._steps_since_plain = 0

    # Before a prompt is read

    def expects_drafts(self, rows: int, context: int, longest: int) -> bool:
        """Whether a row that is to decode as one of `rows` is likely to be drafted for, so that the draft model should
        read its prompt."""
        chances = Chances([self.acceptance.average_chances(longest)] * rows, [None] * rows)
        goodput = self._goodput(chances, self.costs.seconds(rows, longest, context))
        return bool(goodput.max() > goodput[0, 0])

    def explore_prefill(self, rows: Sequence[R]) -> Sequence[R]:
        """The first few of these rows, or none: their prompts should be read by the draft model although no drafts are
        expected."""
        return self.exploration.prefill(rows)

    def record_prefill_exploration(self, seconds: float) -> None:
        """The draft model has read such prompts for so long."""
        self.exploration.record_prefill(seconds)

    # Before a step

    def choose(
        self,
        rows: Sequence[DraftedRow],
        limits: Sequence[int],
        context: int,
        fixed: int | None = None,
        copied: Sequence[Sequence[float] | None] = (),
        computes: bool = True,
    ) -> Choice:
        """The draft length of each row, at most its limit. `context` is the number of tokens of the longest row.

        `copied` has the chances of those rows whose drafts can be copied. Unless the drafter `computes` drafts as well,
        only those rows are drafted for.
        """
        longest = max(limits, default=0)
        if not longest:
            return Choice.none(len(rows))
        computed = self.acceptance.chances(rows, limits) if computes else [None] * len(rows)
        chances = Chances(computed, copied or [None] * len(rows))
        if fixed is None:
            fixed = self.costs.unmeasured(longest)
        if fixed is not None:
            return self._fixed(chances, limits, fixed)
        seconds = self.costs.seconds(len(rows), longest, context)
        best = self._best(self._goodput(chances, seconds))
        explored = frozenset[int]()
        if computes and not best.computed:
            short = min(self.tuning.draft_tokens, longest)
            explored = frozenset(self.exploration.rows_to_draft(rows, seconds[short, short] - seconds[0, 0]))
        return self._choice(rows, chances, best, explored)

    def _fixed(self, chances: Chances, limits: Sequence[int], length: int) -> Choice:
        copied = [chances.best(row, Lengths(length, length))[1] for row in range(len(limits))]
        able = [own is not None for own in chances.computed]
        lengths = [
            min(length, limit) if computes or copies else 0
            for limit, computes, copies in zip(limits, able, copied, strict=True)
        ]
        return Choice(lengths, copied)

    def _choice(self, rows: Sequence[DraftedRow], chances: Chances, best: Lengths, explored: frozenset[int]) -> Choice:
        """Each row's share of the best lengths; rows that are explored get a short computed draft at least."""
        short = Lengths(max(best.verified, self.tuning.draft_tokens), self.tuning.draft_tokens)
        lengths, copied = [], []
        for place, row in enumerate(rows):
            own, copies = chances.best(place, short if row.id in explored else best)
            lengths.append(self._worth_sampling(own))
            copied.append(copies)
        return Choice(lengths, copied)

    def _goodput(self, chances: Chances, seconds: np.ndarray) -> np.ndarray:
        """Tokens a second for each longest draft and longest computed one: tokens expected over seconds expected.

        No draft has the advantage of the margin.
        """
        rates: np.ndarray = chances.expected(len(seconds) - 1) / seconds
        rates[0, 0] *= 1 + self.tuning.margin
        return rates

    def _best(self, rates: np.ndarray) -> Lengths:
        longest = len(rates) - 1
        verified, computed = np.unravel_index(int(rates.argmax()), rates.shape)
        best = Lengths(int(verified), int(computed))
        present = Lengths(min(self._current.verified, longest), min(self._current.computed, longest))
        if rates[verified, computed] < rates[present.verified, present.computed] * (1 + self.tuning.margin):
            best = present
        doubtful = rates[best.verified, best.computed] < rates[0, 0] * (1 + self.tuning.doubt)
        return Lengths() if doubtful and self._steps_since_plain >= self.tuning.recheck_after else best

    def _worth_sampling(self, chances: Sequence[float]) -> int:
        """How far to draft for a row within the batch's draft length: one token, and on while it is reached often."""
        least = self.tuning.least_chance
        return next((max(depth, 1) for depth, chance in enumerate(chances) if chance < least), len(chances))

    # After a step

    def learn(
        self,
        rows: Sequence[DraftedRow],
        drafted_lengths: Sequence[int],
        accepted: Sequence[int],
        context: int,
        draft_seconds: float,
        verify_seconds: float,
        copied: Sequence[bool] = (),
    ) -> None:
        """Take in a step that was run."""
        copied = copied or [False] * len(rows)
        lengths = Lengths.of(drafted_lengths, copied)
        pays_for_last = self.deferred and not lengths.verified and self._current.verified > 0
        if not pays_for_last:
            self.costs.learn(len(rows), lengths.verified, lengths.computed, context, draft_seconds, verify_seconds)
        plain_seconds = self.costs.verify.estimate(len(rows), 1, context)
        self.exploration.learn(rows, lengths.computed > 0, draft_seconds + verify_seconds, plain_seconds)
        self._steps_by_length[lengths.verified] += 1
        self._current = lengths
        if not pays_for_last:
            self._steps_since_plain = self._steps_since_plain + 1 if lengths.verified else 0
        for row, drafted, agreed, copies in zip(rows, drafted_lengths, accepted, copied, strict=True):
            if drafted:
                self.observed.learn(drafted, agreed)
                if not copies:
                    self.acceptance.learn(row, drafted, agreed)

    def report(self) -> dict[str, Any]:
        """JSON-ready: the last draft length, how often each was run, and the acceptance rates."""
        steps = self._steps_by_length
        total = sum(steps.values())
        return {
            "current_draft_length": self._current.verified,
            "steps_by_draft_length": {str(length): steps[length] for length in sorted(steps)},
            "plain_step_share": steps[0] / total if total else 0.0,
            "probes": self.exploration.drafts,
            "recent_acceptance_by_position": [rate.mean for rate in self.observed.rates],
        }
