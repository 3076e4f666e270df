"""The draft length that yields the most tokens a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from parallm_openai.engine.speculation.draft_length.acceptance_rate import (
    AcceptanceEstimator,
    DraftedRow,
    expected_tokens,
)
from parallm_openai.engine.speculation.draft_length.exploration import Exploration, R
from parallm_openai.engine.speculation.draft_length.step_cost import CostModel
from parallm_openai.engine.speculation.draft_length.tuning import DEFAULT, Tuning


class DraftLength:
    """Decides from what was learnt, and learns from the steps that were run.

    `choose` and `expects_drafts` change nothing that a later answer depends on: only `learn` and the two methods that
    explore prompts do.
    """

    def __init__(self, tuning: Tuning = DEFAULT) -> None:
        self.tuning = tuning
        self.acceptance = AcceptanceEstimator(tuning)
        self.costs = CostModel(tuning)
        self.exploration = Exploration(tuning)
        self._steps_by_length: Counter[int] = Counter()
        self._current = 0
        self._steps_since_plain = 0

    # Before a prompt is read

    def expects_drafts(self, rows: int, context: int, longest: int) -> bool:
        """Whether a row that is to decode as one of `rows` is likely to be drafted for, so that the draft model should
        read its prompt."""
        chances = [self.acceptance.average_chances(longest)] * rows
        plain, *drafted = self._goodput(chances, self.costs.seconds(rows, longest, context))
        return max(drafted, default=0.0) > plain

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
        known: Sequence[Sequence[float] | None] = (),
    ) -> list[int]:
        """The draft length of each row, at most its limit. `context` is the number of tokens of the longest row.

        `known` has the chances of those rows whose drafter can tell (`Drafter.chances`).
        """
        longest = max(limits, default=0)
        if fixed is None and longest:
            fixed = self.costs.unmeasured(longest)
        if fixed is not None or not longest:
            return [min(fixed or 0, limit) for limit in limits]
        guessed = self.acceptance.chances(rows, limits)
        told = known or [None] * len(guessed)
        chances = [own if own is not None else guess for own, guess in zip(told, guessed, strict=True)]
        seconds = self.costs.seconds(len(rows), longest, context)
        if best := self._best(self._goodput(chances, seconds)):
            return [self._worth_sampling(each[:best]) for each in chances]
        short = min(self.tuning.draft_tokens, longest)
        explored = self.exploration.rows_to_draft(rows, seconds[short] - seconds[0])
        return [
            self._worth_sampling(each[:short]) if row.id in explored else 0
            for row, each in zip(rows, chances, strict=True)
        ]

    def _goodput(self, chances: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
        """Tokens a second at each draft length: those that a step should yield over the time that it should take.

        No draft has the advantage of the margin.
        """
        expected = expected_tokens(chances, len(seconds) - 1)
        rates = [tokens / took for tokens, took in zip(expected, seconds, strict=True)]
        rates[0] *= 1 + self.tuning.margin
        return rates

    def _best(self, rates: Sequence[float]) -> int:
        best = max(range(len(rates)), key=rates.__getitem__)
        present = min(self._current, len(rates) - 1)
        if rates[best] < rates[present] * (1 + self.tuning.margin):
            best = present
        doubtful = rates[best] < rates[0] * (1 + self.tuning.doubt)
        return 0 if doubtful and self._steps_since_plain >= self.tuning.recheck_after else best

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
    ) -> None:
        """Take in a step that was run."""
        length = max(drafted_lengths)
        self.costs.learn(len(rows), length, context, draft_seconds, verify_seconds)
        plain_seconds = self.costs.verify.estimate(len(rows), 1, context)
        self.exploration.learn(rows, length > 0, draft_seconds + verify_seconds, plain_seconds)
        self._steps_by_length[length] += 1
        self._current = length
        self._steps_since_plain = self._steps_since_plain + 1 if length else 0
        for row, drafted, agreed in zip(rows, drafted_lengths, accepted, strict=True):
            if drafted:
                self.acceptance.learn(row, drafted, agreed)

    def report(self) -> dict[str, Any]:
        """JSON-ready: the last draft length, how often each was run, and the acceptance rates."""
        steps = self._steps_by_length
        total = sum(steps.values())
        return {
            "current_draft_length": self._current,
            "steps_by_draft_length": {str(length): steps[length] for length in sorted(steps)},
            "plain_step_share": steps[0] / total if total else 0.0,
            "probes": self.exploration.drafts,
            "recent_acceptance_by_position": [rate.mean for rate in self.acceptance.by_depth],
        }
