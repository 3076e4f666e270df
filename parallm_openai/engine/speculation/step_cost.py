"""What a forward costs, learnt while serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Weight of a new measurement; the first of a shape is replaced, since kernels compile on it.
SMOOTHING = 0.2
# A measurement counts once for every so many of other shapes since the last of its own.
STALE = 8
OUTLIER = 2.0
NEARBY = 1.5
# The fit is made anew after so many measurements, and for every new shape.
REFIT_EVERY = 32


@dataclass(slots=True)
class _Cell:
    seconds: float
    learnt: int
    count: int = 1

    def learn(self, seconds: float, learnt: int) -> None:
        """Take in a measurement, the `learnt`-th of all shapes."""
        weight = 1 - (1 - SMOOTHING) ** max(1.0, (learnt - self.learnt) / STALE)
        self.learnt = learnt
        self.count += 1
        if self.count == 2:
            self.seconds = min(self.seconds, seconds)
        else:
            # A step that was held up by something else must not condemn its shape.
            self.seconds += weight * (min(seconds, OUTLIER * self.seconds) - self.seconds)


class StepCost:
    """Seconds of so many forwards by (rows, width, context): a table where measured, a linear fit elsewhere."""

    def __init__(self) -> None:
        self._table: dict[tuple[int, int, int, int], _Cell] = {}
        # Plain numbers: an estimate is asked for many times a step.
        self._fit: list[float] | None = None
        self._least = 0.0
        self._learnt = 0

    def learn(self, rows: int, width: int, context: int, seconds: float, forwards: int = 1) -> None:
        key = (rows, width, _bucket(context), forwards)
        cell = self._table.get(key)
        if cell is None:
            self._table[key] = _Cell(seconds, self._learnt)
        else:
            cell.learn(seconds, self._learnt)
        self._learnt += 1
        # The second measurement of a shape replaces its first.
        if cell is None or cell.count == 2 or self._learnt % REFIT_EVERY == 0:
            self._fit = None

    def known(self, rows: int, width: int) -> bool:
        """Whether this width was measured with about as many rows: what is between is filled in by the fit.

        Rows that come and go would otherwise have every number of them measured anew.
        """
        return any(
            cell.count >= 2 and w == width and r <= NEARBY * rows and rows <= NEARBY * r
            for (r, w, *_), cell in self._table.items()
        )

    def estimate(self, rows: int, width: int, context: int, forwards: int = 1) -> float:
        """Seconds that forwards of `[rows, width]` after `context` tokens should take; 0 if nothing is known."""
        key = (rows, width, _bucket(context), forwards)
        cell = self._table.get(key)
        if cell is not None and cell.count >= 2:
            return cell.seconds
        if not self._table or not forwards:
            return 0.0
        if self._fit is None:
            self._fit = self._solve().tolist()
            self._least = min(cell.seconds / shape[-1] for shape, cell in self._table.items())
        fitted = sum(weight * feature for weight, feature in zip(self._fit, _features(*key), strict=True))
        return max(fitted, forwards * self._least / 10)

    def _solve(self) -> np.ndarray:
        """Least squares over the table, leaning on "every token costs something" where it is thin."""
        features = np.array([_features(*key) for key in self._table])
        seconds = np.array([cell.seconds for cell in self._table.values()])
        scale = (seconds / features[:, 0]).mean()
        # A faint prior: half of a step is fixed cost, a token adds a twentieth of it.
        prior = np.array([0.5, 0.05, 0.0]) * scale
        strength = 1e-2
        lhs = features.T @ features + strength * np.eye(3)
        return np.linalg.solve(lhs, features.T @ seconds + strength * prior)


def _bucket(context: int) -> int:
    return max(0, (context // 256).bit_length())


def _features(rows: int, width: int, bucket: int, forwards: int) -> tuple[float, float, float]:
    tokens = forwards * rows * width
    return float(forwards), float(tokens), tokens * (1 << bucket) / 2
