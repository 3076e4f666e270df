"""How long a step takes, learnt while serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parallm_openai.engine.speculation.draft_length.tuning import DEFAULT, Tuning


@dataclass(slots=True)
class Timing:
    """What is known of one shape, from so many measurements."""

    seconds: float
    count: int = 1

    def learn(self, seconds: float, tuning: Tuning) -> None:
        self.count += 1
        if self.count == 2:
            # Kernels may have been compiled during the first.
            self.seconds = min(self.seconds, seconds)
        else:
            self.seconds += tuning.smoothing * (min(seconds, tuning.outlier * self.seconds) - self.seconds)


class StepCost:
    """Seconds of a forward by (rows, width, context): a table of what was measured, and a linear fit for the rest."""

    def __init__(self, tuning: Tuning = DEFAULT) -> None:
        self.tuning = tuning
        self._table: dict[tuple[int, int, int], Timing] = {}
        # Plain numbers: estimates are asked for many times a step.
        self._fit: list[float] | None = None

    def learn(self, rows: int, width: int, context: int, seconds: float) -> None:
        """A forward of `[rows, width]` after `context` tokens took so long."""
        key = (rows, width, context_bucket(context))
        timing = self._table.get(key)
        if timing is None:
            timing = self._table[key] = Timing(seconds)
        else:
            timing.learn(seconds, self.tuning)
        if timing.count <= 2:
            self._fit = None

    def known(self, width: int, or_wider: bool = False) -> bool:
        """Whether this width, or also a wider one, was measured with any number of rows."""
        return any(
            timing.count >= 2 and (measured == width or (or_wider and measured > width))
            for (_, measured, _), timing in self._table.items()
        )

    def estimate(self, rows: int, width: int, context: int) -> float:
        """Seconds that this forward should take; 0 if nothing is known."""
        key = (rows, width, context_bucket(context))
        timing = self._table.get(key)
        if timing is not None and timing.count >= 2:
            return timing.seconds
        if not self._table:
            return 0.0
        if self._fit is None:
            self._fit = self._solve().tolist()
        fixed, per_token, per_context = self._fit
        _, tokens, attended = features(*key)
        return max(0.0, fixed + per_token * tokens + per_context * attended)

    def _solve(self) -> np.ndarray:
        """Least squares over the table. The prior decides where the table is thin."""
        shapes = np.array([features(*key) for key in self._table])
        seconds = np.array([timing.seconds for timing in self._table.values()])
        prior = np.array([0.5, 0.05, 0.0]) * seconds.mean()
        strength = self.tuning.fit_prior
        return np.linalg.solve(shapes.T @ shapes + strength * np.eye(3), shapes.T @ seconds + strength * prior)


class CostModel:
    """Seconds of a whole step: the forwards that compute drafts, and the target's verification."""

    def __init__(self, tuning: Tuning) -> None:
        self.verify = StepCost(tuning)
        self.draft = StepCost(tuning)

    def unmeasured(self, longest: int) -> int | None:
        """A draft length that must be tried first, for the sake of its timing: none, and then the longest.

        The fit fills in what lies between the two, and other numbers of rows: if they come and go, measuring each of
        them would cost more than it tells. Rows near their end are no reason to measure shorter lengths either.
        """
        if not self.verify.known(1):
            return 0
        return None if self.verify.known(longest + 1, or_wider=True) else longest

    def seconds(self, rows: int, longest: int, context: int) -> np.ndarray:
        """What a step takes by its longest draft and its longest computed one, `[longest + 1, longest + 1]`.

        A draft that is computed is verified, too: no step is for nothing. More tokens are never verified faster than
        fewer, whatever an old or lucky measurement says. Otherwise a draft could look cheaper than none even if
        nothing is accepted.
        """
        lengths = np.arange(longest + 1)
        verify = np.maximum.accumulate([self.verify.estimate(rows, 1 + int(length), context) for length in lengths])
        draft = self.draft.estimate(rows, 1, context)
        seconds = np.maximum(verify[:, None] + draft * lengths[None, :], 1e-9)
        seconds[lengths[None, :] > lengths[:, None]] = np.inf
        return seconds

    def learn(
        self, rows: int, verified: int, computed: int, context: int, draft_seconds: float, verify_seconds: float
    ) -> None:
        """A step took so long: its longest draft had `verified` tokens, and its longest computed one `computed`."""
        self.verify.learn(rows, verified + 1, context, verify_seconds)
        if computed:
            self.draft.learn(rows, 1, context, draft_seconds / computed)


def context_bucket(context: int) -> int:
    """Contexts whose lengths differ by less than a factor of two share a bucket."""
    return (context // 256).bit_length()


def features(rows: int, width: int, bucket: int) -> tuple[float, float, float]:
    """One, the tokens that are read, and the tokens that these attend to, in units of 512."""
    tokens = rows * width
    return 1.0, float(tokens), tokens * (1 << bucket) / 2
