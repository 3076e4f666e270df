"""What a replica's work takes, as a file says that was measured with the real engine."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from parallm_openai.engine.scheduler import ModelTraits
from parallm_openai.simulation.problems import FileError, first_problem

Seconds = Annotated[float, Field(ge=0, le=3600)]
# Not nothing: the clock must move on with every forward, however late it is.
ForwardSeconds = Annotated[float, Field(ge=1e-6, le=3600)]
Axis = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Grid(_Part):
    """Seconds of a forward by its rows, its size and the context: `seconds[i][j][k]` at each of the three axes.

    The size is the tokens a row of a decode step, and those of the whole rectangle when prompts are read.
    """

    rows: Axis
    sizes: Axis
    contexts: Axis
    seconds: tuple[tuple[tuple[ForwardSeconds, ...], ...], ...]

    @model_validator(mode="after")
    def _is_a_grid(self) -> Grid:
        for name, axis in (("rows", self.rows), ("sizes", self.sizes), ("contexts", self.contexts)):
            if list(axis) != sorted(set(axis)):
                raise ValueError(f"{name} must ascend")
        lengths = [[len(line) for line in plane] for plane in self.seconds]
        if lengths != [[len(self.contexts)] * len(self.sizes)] * len(self.rows):
            raise ValueError("seconds must have an entry for each of the rows, sizes and contexts")
        return self

    def scaled(self, factor: float) -> Grid:
        seconds = tuple(tuple(tuple(factor * one for one in line) for line in plane) for plane in self.seconds)
        return self.model_copy(update={"seconds": seconds})

    def at(self, rows: int, size: int, context: int) -> float:
        """Seconds between the grid's points; beyond the last ones they grow as between the last two."""
        planes, lines, points = _place(self.rows, rows), _place(self.sizes, size), _place(self.contexts, context)
        found = sum(
            a * b * c * self.seconds[i][j][k] for i, a in planes for j, b in lines for k, c in points if a and b and c
        )
        # Noise between the last two points of an axis must not let more work take less than a quarter of less work.
        return max(found, self.seconds[planes[0][0]][lines[0][0]][points[0][0]] / 4)


def _place(axis: Sequence[int], value: int) -> tuple[tuple[int, float], ...]:
    """The two points of an axis that a value is read from, and their weights."""
    if len(axis) == 1 or value <= axis[0]:
        return ((0, 1.0),)
    low = min(bisect_right(axis, value), len(axis) - 1) - 1
    share = (value - axis[low]) / (axis[low + 1] - axis[low])
    return ((low, 1 - share), (low + 1, share))


class Traits(_Part):
    """What the scheduler needs to know of the model: the fields of `ModelTraits` that a plan depends on."""

    padding_limit: Annotated[int, Field(ge=1)]
    forward_tokens: Annotated[int, Field(ge=0)]
    prefill_tokens: Annotated[int, Field(ge=1)]
    fast_width: Annotated[int, Field(ge=1)] | None = None

    def of_model(self) -> ModelTraits:
        return ModelTraits(ragged=True, **self.model_dump())


class StepCosts(_Part):
    """What forwards, steps and requests take with one model on one machine.

    `step_seconds` is what a step takes besides its forwards, and for each of its rows. `spread` are quantiles of a
    forward's time relative to its median. `acceptance` are quantiles of the share of drafted tokens that a row accepts.
    `request_seconds` is what a request takes outside the engine, and `serving_factor` how much longer the engine's work
    takes while answers are streamed over HTTP.
    """

    model: str
    machine: str
    traits: Traits
    context_length: Annotated[int, Field(ge=2, le=10_000_000)]
    drafter: Literal["draft_model", "none"]
    verify: Grid
    prefill: Grid
    draft: Grid | None = None
    draft_prefill: Grid | None = None
    step_seconds: tuple[Seconds, Seconds]
    spread: Annotated[tuple[Annotated[float, Field(ge=0.1, le=100)], ...], Field(min_length=1)] = (1.0,)
    acceptance: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    request_seconds: Seconds = 0.0
    serving_factor: Annotated[float, Field(ge=0.1, le=1000)] = 1.0

    @model_validator(mode="after")
    def _has_what_drafting_takes(self) -> StepCosts:
        if self.drafter != "none" and not (self.draft and self.draft_prefill and self.acceptance):
            raise ValueError("drafter: a draft model needs draft, draft_prefill and acceptance")
        return self

    @classmethod
    def read(cls, file: Path) -> StepCosts:
        """Raises FileError."""
        try:
            return cls.model_validate_json(file.read_bytes(), strict=True)
        except OSError as error:
            raise FileError(f"{file}: {error.strerror}") from error
        except ValidationError as error:
            raise FileError(f"{file}: {first_problem(error)}") from error

    def slowed(self, reading: float, decoding: float) -> StepCosts:
        """Those of a machine that takes so many times as long to read prompts, and to decode."""
        factors = {"prefill": reading, "draft_prefill": reading, "verify": decoding, "draft": decoding}
        grids = {name: getattr(self, name).scaled(factor) for name, factor in factors.items() if getattr(self, name)}
        fixed, per_row = self.step_seconds
        return self.model_copy(update={**grids, "step_seconds": (decoding * fixed, decoding * per_row)})

    def write(self, file: Path) -> None:
        file.write_text(self.model_dump_json(indent=1) + "\n")


class Costs(Protocol):
    """Seconds of each thing that a replica does, asked for once each time that it does it."""

    def prefill(self, rows: int, width: int, context: int) -> float:
        """The target reads `width` tokens of each prompt, after `context` of the longest."""

    def draft_prefill(self, rows: int, width: int, context: int) -> float:
        """The draft model reads along."""

    def draft(self, rows: int, widths: Sequence[int], context: int) -> float:
        """A draft: a forward of each of these widths."""

    def verify(self, rows: int, width: int, context: int) -> float: ...

    def step(self, rows: int) -> float:
        """A step besides its forwards."""


class CostModel:
    """Draws from measured costs; without `noise`, every forward takes its median."""

    def __init__(self, costs: StepCosts, seed: int = 0, noise: bool = True) -> None:
        self.costs = costs
        self._rng = random.Random(seed)
        self._spread = costs.spread if noise else (1.0,)
        self._known: dict[tuple[str, int, int, int], float] = {}

    def prefill(self, rows: int, width: int, context: int) -> float:
        return self._seconds("prefill", rows, rows * width, context)

    def draft_prefill(self, rows: int, width: int, context: int) -> float:
        return self._seconds("draft_prefill", rows, rows * width, context)

    def draft(self, rows: int, widths: Sequence[int], context: int) -> float:
        single = self._seconds("draft", rows, 1, context)
        # What the draft model has to catch up with is read as a prompt is.
        return sum(single if width <= 2 else self.draft_prefill(rows, width, context) for width in widths)

    def verify(self, rows: int, width: int, context: int) -> float:
        return self._seconds("verify", rows, width, context)

    def step(self, rows: int) -> float:
        fixed, per_row = self.costs.step_seconds
        return (fixed + per_row * rows) * self.costs.serving_factor

    def _seconds(self, kind: str, rows: int, size: int, context: int) -> float:
        # Contexts that differ by less than a block cost the same.
        key = (kind, rows, size, context // 16)
        seconds = self._known.get(key)
        if seconds is None:
            grid: Grid = getattr(self.costs, kind)
            seconds = self._known[key] = grid.at(rows, size, context) * self.costs.serving_factor
        return seconds * self._rng.choice(self._spread)
