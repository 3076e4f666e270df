"""A simulated server for the draft length's rules: no model and no clock, so that every run can be made again.

`Server` keeps its own time. Its machine has a price for every forward, its rows accept drafts with known
probabilities, and requests come and go. A `Regime` names one such world. The random numbers follow from the seed and
from the place of a token in its row, not from what was drafted: two sets of rules meet the same luck.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from parallm_openai.engine.speculation.draft_length import Choice
from parallm_openai.engine.speculation.draft_length.acceptance_rate import AcceptanceRate

LIMIT = 7
# The simulated draft model follows the bundled one: a row that is further behind than this starts over, with so many
# tokens, and its guesses are then a little worse.
CATCH_UP = 48
RESTART = 24
UNINFORMED = 0.8


@dataclass(frozen=True)
class Machine:
    """What forwards cost, in units of one target forward's fixed part."""

    per_token: float = 0.05
    # The same while prompts are read, in wide and efficient products.
    per_prompt_token: float = 0.02
    per_context: float = 0.0
    # Sampling one position.
    per_sample: float = 0.003
    # A forward of the draft model, as a share of the target's for as many tokens; 0 stands for a drafter without model.
    draft: float = 0.15
    # A forward of one single token takes this share of its cost: it needs no matrix products, only vector ones.
    alone: float = 1.0
    # Forwards wider than this take so much longer: kernels for few tokens end somewhere.
    fast_width: int = 99
    wide: float = 1.0
    noise: float = 0.03
    # How often a step is held up, and how much longer it then takes.
    held_up: float = 0.0
    held_up_by: float = 8.0
    # The first forward of a shape takes so many units longer: kernels are compiled on it.
    compiling: float = 0.0
    # How slow the machine is at a time.
    slowness: Callable[[float], float] = lambda now: 1.0

    def target(self, rows: int, width: int, context: int) -> float:
        tokens = rows * width
        cost = 1 + self.per_token * tokens + self.per_context * tokens * context
        cost *= self.wide if width > self.fast_width else 1.0
        return cost * (self.alone if tokens == 1 else 1.0)


@dataclass(frozen=True)
class Text:
    """How often a row's drafted tokens are accepted.

    A row alternates between `high` and `low` every `switch` tokens on average (0: each row keeps one of them);
    `share` of the text is high. The first drafted token is accepted `first` times as often as the later ones.
    """

    high: float
    low: float | None = None
    share: float = 0.5
    switch: float = 0.0
    # If this is not 0, a row's text is high up to this token and low from there on.
    turns: int = 0
    first: float = 1.0


@dataclass(frozen=True)
class Regime:
    """A world: the machine, the text at each time, how many clients ask at each time, and what they ask for."""

    name: str
    machine: Machine = Machine()
    text: Callable[[float], Text] = lambda now: Text(0.7)
    clients: Callable[[float], int] = lambda now: 4
    tokens: tuple[int, int] = (60, 200)
    prompts: tuple[int, int] = (30, 90)
    # A drafter without model proposes for this share of the steps only.
    proposes: float = 1.0
    # How long it is simulated.
    time: float = 900.0


@dataclass(eq=False)
class SimulatedRow:
    """One request, and the luck of each of its tokens."""

    id: int
    text: Text
    length: int
    prompt: int
    rng: random.Random
    acceptance: AcceptanceRate | None = None
    generated: int = 0
    read: bool = False
    behind: int = 0
    informed: bool = True
    luck: list[float] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    proposals: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        text, low = self.text, self.text.low if self.text.low is not None else self.text.high
        chance = text.high if self.rng.random() < text.share else low
        for index in range(self.length + LIMIT + 1):
            if text.turns:
                chance = text.high if index < text.turns else low
            if text.switch and self.rng.random() < 1 / text.switch:
                chance = text.high if self.rng.random() < text.share else low
            self.chances.append(chance)
            self.luck.append(self.rng.random())
            self.proposals.append(self.rng.random())

    def accepts(self, drafted: int) -> int:
        """How many of so many drafted tokens the target agrees with."""
        for depth in range(drafted):
            chance = self.chances[self.generated + depth] * (self.text.first if depth == 0 else 1.0)
            if self.luck[self.generated + depth] >= min(chance, 0.995) * (1.0 if self.informed else UNINFORMED):
                return depth
        return drafted


class Chooser(Protocol):
    """What the simulation asks of the rules; `DraftLength` and `FixedLength` have it."""

    def expects_drafts(self, rows: int, context: int, longest: int) -> bool: ...
    def explore_prefill(self, rows: Sequence[SimulatedRow]) -> Sequence[SimulatedRow]: ...
    def record_prefill_exploration(self, seconds: float) -> None: ...
    def choose(self, rows: Sequence[SimulatedRow], limits: Sequence[int], context: int) -> Choice: ...
    def learn(
        self,
        rows: Sequence[SimulatedRow],
        drafted_lengths: Sequence[int],
        accepted: Sequence[int],
        context: int,
        draft_seconds: float,
        verify_seconds: float,
    ) -> None: ...


class FixedLength:
    """Drafts always the same number of tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def expects_drafts(self, rows: int, context: int, longest: int) -> bool:
        return self.length > 0

    def explore_prefill(self, rows: Sequence[SimulatedRow]) -> Sequence[SimulatedRow]:
        return ()

    def record_prefill_exploration(self, seconds: float) -> None:
        pass

    def choose(self, rows: Sequence[SimulatedRow], limits: Sequence[int], context: int) -> Choice:
        return Choice([min(self.length, limit) for limit in limits], [False] * len(limits))

    def learn(self, *step: object) -> None:
        pass


class Server:
    """Serves a regime's requests; `run` returns tokens per unit of time."""

    def __init__(self, regime: Regime, chooser: Chooser, seed: int) -> None:
        self.regime, self.chooser, self.seed = regime, chooser, seed
        self.now = 0.0
        self.steps = 0
        self.tokens = 0
        self.rows: list[SimulatedRow] = []
        self.arrived = 0
        self.compiled: set[tuple[str, int, int]] = set()

    def run(self, until: float) -> float:
        began, tokens = self.now, self.tokens
        while self.now < until:
            self._admit()
            self._step()
        return (self.tokens - tokens) / (self.now - began)

    def _admit(self) -> None:
        new: list[SimulatedRow] = []
        while len(self.rows) + len(new) < self.regime.clients(self.now):
            rng = random.Random(self.seed * 1_000_003 + self.arrived)
            length = rng.randint(*self.regime.tokens)
            prompt = round(math.exp(rng.uniform(*map(math.log, self.regime.prompts))))
            new.append(SimulatedRow(self.arrived, self.regime.text(self.now), length, prompt, rng))
            self.arrived += 1
        if new:
            self._prefill(new)
            self.rows += new

    def _prefill(self, new: list[SimulatedRow]) -> None:
        machine = self.regime.machine
        speed = machine.slowness(self.now)
        tokens = sum(row.prompt for row in new)
        self.now += speed * (1 + machine.per_prompt_token * tokens)
        context = max(row.prompt for row in new)
        if self.chooser.expects_drafts(len(self.rows) + len(new), context, LIMIT):
            read: Sequence[SimulatedRow] = new
            took = speed * machine.draft * (1 + machine.per_prompt_token * tokens)
        else:
            read = self.chooser.explore_prefill(new)
            took = speed * 0.0
            if read:
                took = speed * machine.draft * (1 + machine.per_prompt_token * sum(row.prompt for row in read))
                self.chooser.record_prefill_exploration(took)
        self.now += took
        for row in new:
            row.read = row in read
            row.behind = 1 if row.read else row.prompt

    def _step(self) -> None:
        rows, machine = self.rows, self.regime.machine
        context = max(row.prompt + row.generated for row in rows)
        limits = [min(LIMIT, row.length - row.generated - 1) for row in rows]
        if self.regime.proposes < 1:
            limits = [
                limit if row.proposals[row.generated] < self.regime.proposes else 0
                for row, limit in zip(rows, limits, strict=True)
            ]
        drafted = self.chooser.choose(rows, limits, context).lengths
        draft = self._draft(drafted) * self._disturbance()
        verify = machine.target(len(rows), max(drafted) + 1, context) + machine.per_sample * (len(rows) + sum(drafted))
        verify *= self._disturbance()
        shape = ("verify", len(rows), max(drafted))
        if shape not in self.compiled:
            self.compiled.add(shape)
            verify += machine.compiling
        accepted = [row.accepts(length) for row, length in zip(rows, drafted, strict=True)]
        self.now += draft + verify
        self.steps += 1
        self.chooser.learn(rows, drafted, accepted, context, draft, verify)
        for row, agreed in zip(rows, accepted, strict=True):
            row.generated += agreed + 1
            row.behind += agreed + 1
            self.tokens += agreed + 1
        for row, length, agreed in zip(rows, drafted, accepted, strict=True):
            if length:
                row.behind = 2 if agreed == length else 1
        self.rows = [row for row in rows if row.generated < row.length]

    def _draft(self, drafted: Sequence[int]) -> float:
        """What drafting takes: a forward for each token, the first of which reads what the rows have missed."""
        machine = self.regime.machine
        drafting = [row for row, length in zip(self.rows, drafted, strict=True) if length]
        if not drafting or not machine.draft:
            return 0.0
        for row in drafting:
            if row.behind > CATCH_UP:
                row.behind, row.informed = RESTART, False
        cost = machine.draft * (1 + machine.per_token * len(drafting) * max(row.behind for row in drafting))
        for depth in range(1, max(drafted)):
            cost += machine.draft * (1 + machine.per_token * sum(length > depth for length in drafted))
        return cost

    def _disturbance(self) -> float:
        machine = self.regime.machine
        rng = random.Random(self.seed * 1_000_003 + self.steps)
        factor = machine.slowness(self.now) * math.exp(rng.gauss(0, machine.noise))
        return factor * (machine.held_up_by if rng.random() < machine.held_up else 1.0)


def _waves(low: int, high: int, period: float) -> Callable[[float], int]:
    """Clients that come and go: a new number of them every `period`, in a fixed pattern."""
    return lambda now: low + int((high - low + 1) * ((int(now / period) * 0.618034) % 1))


def _drift(now: float) -> float:
    """A machine that others use too: up to half as slow again, in waves, with sudden steps."""
    return 1.25 + 0.2 * math.sin(now / 90) + (0.3 if int(now / 170) % 3 == 1 else 0.0)


def _slow_start(now: float) -> float:
    return 1.6 if now < 8 else 1.0


REGIMES: tuple[Regime, ...] = (
    Regime("good draft, 1 row", text=lambda now: Text(0.9), clients=lambda now: 1),
    Regime("good draft, 16 rows", text=lambda now: Text(0.9), clients=lambda now: 16),
    Regime("good draft, cheap tokens", Machine(0.015, 0.005), lambda now: Text(0.85), lambda now: 8),
    Regime("bad draft", text=lambda now: Text(0.05), clients=lambda now: 8),
    Regime("poor draft, 16 rows", Machine(per_token=0.1, draft=0.3), lambda now: Text(0.35), lambda now: 16),
    Regime(
        "break-even, noisy machine",
        Machine(per_token=0.08, draft=0.3, noise=0.12, held_up=0.02),
        lambda now: Text(0.58),
        lambda now: 8,
    ),
    Regime(
        "break-even, drifting machine",
        Machine(per_token=0.08, draft=0.3, slowness=_drift, noise=0.05),
        lambda now: Text(0.55),
        lambda now: 8,
    ),
    Regime(
        "good draft, drifting machine",
        Machine(per_token=0.1, slowness=_drift, noise=0.05),
        lambda now: Text(0.8),
        lambda now: 8,
    ),
    Regime(
        "poor draft, slow first steps",
        Machine(per_token=0.05, draft=0.4, slowness=_slow_start),
        lambda now: Text(0.5),
        lambda now: 16,
        (1000, 3000),
    ),
    Regime(
        "steps held up, kernels compiled",
        Machine(per_token=0.08, noise=0.1, held_up=0.03, held_up_by=15, compiling=6),
        lambda now: Text(0.75),
        _waves(3, 9, 40),
    ),
    Regime("good and bad rows", Machine(per_token=0.08), lambda now: Text(0.95, 0.1, 0.4), lambda now: 8),
    Regime(
        "good and bad rows, dear sampling",
        Machine(per_token=0.02, per_sample=0.03),
        lambda now: Text(0.95, 0.1, 0.4),
        lambda now: 8,
    ),
    Regime(
        "text changes within rows",
        Machine(per_token=0.08, draft=0.25),
        lambda now: Text(0.95, 0.15, 0.5, 40),
        lambda now: 4,
        (300, 600),
    ),
    Regime(
        "one long row, bad, then good",
        Machine(per_token=0.08),
        lambda now: Text(0.03, 0.92, turns=400),
        lambda now: 1,
        (9000, 9000),
        time=2500,
    ),
    Regime(
        "one long row, good, then bad",
        Machine(per_token=0.08),
        lambda now: Text(0.92, 0.03, turns=1500),
        lambda now: 1,
        (9000, 9000),
    ),
    Regime(
        "requests bad, then good",
        text=lambda now: Text(0.03) if now < 300 else Text(0.9),
        prompts=(50, 150),
    ),
    Regime(
        "requests good, then bad",
        text=lambda now: Text(0.9) if now < 300 else Text(0.03),
        prompts=(50, 150),
    ),
    Regime(
        "1 to 16 rows come and go",
        Machine(per_token=0.1, draft=0.2),
        lambda now: Text(0.8, 0.4),
        _waves(1, 16, 25),
        (20, 80),
    ),
    Regime(
        "short rows, bad draft",
        Machine(per_token=0.08, draft=0.2),
        lambda now: Text(0.15),
        _waves(2, 16, 15),
        (8, 30),
        (80, 250),
    ),
    Regime(
        "crowds thin out",
        Machine(per_token=0.2, draft=0.2),
        lambda now: Text(0.85),
        _waves(1, 12, 90),
        (150, 400),
    ),
    Regime(
        "single rows much cheaper",
        Machine(per_token=0.08, alone=0.6),
        lambda now: Text(0.75),
        _waves(1, 8, 25),
        (20, 80),
    ),
    Regime("wide forwards dearer", Machine(per_token=0.04, fast_width=4, wide=1.8), lambda now: Text(0.85)),
    Regime(
        "short and long contexts",
        Machine(per_token=0.05, per_prompt_token=0.001, per_context=4e-5, draft=0.2),
        lambda now: Text(0.7),
        lambda now: 1,
        (60, 200),
        (50, 20000),
    ),
    Regime("first guess worse than later", text=lambda now: Text(0.9, first=0.6)),
    Regime("first guess better than later", text=lambda now: Text(0.55, first=1.6)),
    Regime(
        "prompt lookup",
        Machine(per_token=0.08, draft=0.0),
        lambda now: Text(0.9, 0.2, 0.4, 30),
        lambda now: 6,
        (100, 300),
        proposes=0.3,
    ),
)
