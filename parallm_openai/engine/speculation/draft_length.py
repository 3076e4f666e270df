"""How many tokens to draft: whatever yields the most tokens per second, none included.

Each step maximises `sum of expected tokens / (draft time + verify time)` over the draft
length, from each row's measured acceptance and the measured cost of each shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any

from parallm_openai.engine.speculation.step_cost import StepCost

if TYPE_CHECKING:
    from parallm_openai.engine.row import Row

# How many of its own trials a row needs to count as much as the average of all rows.
PRIOR_TRIALS = 8.0
# A row's memory, in trials: texts change from prose to lists to code.
ROW_MEMORY = 24.0
GLOBAL_MEMORY = 200.0
FADING = 0.97
FIRST_GUESS = 0.7
# A longer or shorter draft must promise this much more to be chosen over the present length,
# and any draft over none: what is even on paper loses by what the paper leaves out.
HYSTERESIS = 0.03
# The shares of the decoding time that may go into finding out whether drafting has become worth while: into
# looks, where the drafter reads a few prompts and then drafts for their rows, since only a row whose prompt it
# has read shows what its guesses are worth; and, where no prompts come, into drafts for all rows.
LOOK_SHARE = 0.008
LOOK_ROWS = 4
PROBE_SHARE = 0.012
PROBE_LENGTH = 2
# The first draft after more plain steps than this is a probe, and also reads what they brought.
BEHIND = 2
# Where a draft promises less than this over none, the plain step is timed anew, at first after a few steps and
# then every so many: a machine's speed drifts, and what is not run keeps the time of when it was.
DOUBT = 0.3
FIRST_RECHECK = 6
RECHECK_EVERY = 24
# A drafted token that is reached more rarely than this is not worth sampling.
LEAST_CHANCE = 0.05
# Where fewer first guesses are accepted, a shape is not drafted for the sake of its timing alone.
WORTH_TIMING = 0.2


@dataclass(slots=True)
class AcceptanceRate:
    """A running mean of "the target agreed", over about `memory` trials."""

    memory: float
    mean: float = 0.0
    trials: float = 0.0

    def learn(self, agreed: int, trials: int) -> None:
        if trials:
            weight = min(self.trials, self.memory)
            self.mean = (self.mean * weight + agreed) / (weight + trials)
            self.trials = weight + trials

    def shrunk(self, prior: float) -> float:
        """The mean, drawn towards `prior` while there are few trials."""
        return (self.mean * self.trials + prior * PRIOR_TRIALS) / (self.trials + PRIOR_TRIALS)


class DraftLength:
    """Chooses each step's draft lengths and learns from what came of them."""

    def __init__(self) -> None:
        self.verify_cost = StepCost()
        self.draft_cost = StepCost()
        self.by_depth: list[AcceptanceRate] = []
        self.chosen: Counter[int] = Counter()
        self.probes = 0
        self._current = 0
        self._wanted = False
        self._longest = 0
        self._steps_since_plain = 0
        self._recheck_after = FIRST_RECHECK
        self._plain_spell = 0
        self._probe_seconds = 0.0
        # Seconds of decoding rows that might be drafted for: since the last draft, and since the last look.
        self._since_draft = 0.0
        self._since_look = 0.0
        self._look_seconds = 0.0
        self._looked_at: frozenset[int] = frozenset()
        # Those of them that have not been drafted for yet, and whether this step does.
        self._unproved: frozenset[int] = frozenset()
        self._proving = False

    def expects_drafts(self, rows: int, context: int, longest: int) -> bool:
        """Whether a drafter should read the prompt of a row that is to be one of `rows`: will it be drafted for?"""
        if self._average(0).trials < PRIOR_TRIALS:
            return True
        chances = list(accumulate((self._average(depth).mean for depth in range(longest)), mul))
        plain, *drafted = _rates([chances] * rows, self._seconds(rows, longest, context))
        return max(drafted, default=0.0) > plain

    def explore_prefill(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The first few of these rows, whose prompts a drafter should read all the same to see what its guesses are
        worth; often none.

        One look is the prompts that are read together, to their end, and one draft for their rows; the next comes
        when decoding has taken long enough to pay for it.
        """
        few = rows[:LOOK_ROWS]
        ids = frozenset(row.id for row in few)
        if ids & self._looked_at:
            return few
        if self._look_seconds > LOOK_SHARE * self._since_look:
            return ()
        self._look_seconds = self._since_look = 0.0
        self._looked_at = self._unproved = ids
        return few

    def record_prefill_exploration(self, seconds: float) -> None:
        """A look has taken so long."""
        self._look_seconds += seconds

    def choose(self, rows: Sequence[Row], limits: Sequence[int], context: int, fixed: int | None = None) -> list[int]:
        """The draft length of each row, at most its limit; `context` is the longest row's tokens."""
        longest = max(limits)
        self._wanted, self._proving = longest > 0, False
        given = fixed if fixed is not None or longest == 0 else self._unmeasured(len(rows), longest)
        if given is not None or longest == 0:
            lengths = [min(given or 0, limit) for limit in limits]
        else:
            lengths = self._chosen(rows, limits, longest, context)
        self._current = max(lengths)
        self._steps_since_plain = self._steps_since_plain + 1 if self._current else 0
        self.chosen[self._current] += 1
        return lengths

    def _chosen(self, rows: Sequence[Row], limits: Sequence[int], longest: int, context: int) -> list[int]:
        chances = [self._chances(row, limit) for row, limit in zip(rows, limits, strict=True)]
        costs = self._seconds(len(rows), longest, context)
        best = self._best(_rates(chances, costs), longest)
        drafted = {row.id for row in rows}
        if best == 0:
            best = min(PROBE_LENGTH, longest)
            drafted = self._to_probe(drafted, costs[0], costs[best])
        return [_worth_sampling(c[:best]) if row.id in drafted else 0 for row, c in zip(rows, chances, strict=True)]

    def _best(self, rates: Sequence[float], longest: int) -> int:
        best = max(range(longest + 1), key=rates.__getitem__)
        now = min(self._current, longest)
        if rates[best] < rates[now] * (1 + HYSTERESIS):
            best = now
        if best == 0:
            self._recheck_after = FIRST_RECHECK
        elif rates[best] < rates[0] * (1 + DOUBT) and self._steps_since_plain >= self._recheck_after:
            self._recheck_after = min(2 * self._recheck_after, RECHECK_EVERY)
            return 0
        return best

    def _to_probe(self, rows: set[int], plain: float, probe: float) -> set[int]:
        """Which rows to draft for although it does not seem to pay: those just looked at, all now and then, or none."""
        unproved = rows & self._unproved
        self._unproved -= rows
        self._proving = bool(unproved)
        chosen = unproved or (rows if self._may_probe(plain, probe) else set())
        self.probes += bool(chosen)
        return chosen

    def _unmeasured(self, rows: int, longest: int) -> int | None:
        """A length to try for the sake of its timing: the plain step, and the longest, must be measured.

        Not what is the longest only for rows near their end; and not where guesses are known to be bad.
        """
        self._longest = max(self._longest, longest)
        if not self.verify_cost.known(rows, 1):
            return 0
        trusted = self._average(0).shrunk(FIRST_GUESS) > WORTH_TIMING
        if trusted and longest == self._longest and not self.verify_cost.known(rows, longest + 1):
            return longest
        return None

    def _seconds(self, rows: int, longest: int, context: int) -> list[float]:
        """What a step of each draft length costs, 0 to `longest`.

        More tokens are never verified faster than fewer, whatever an old or lucky measurement says: with
        nothing accepted, no draft may look cheaper than none.
        """
        verify = accumulate(
            (self.verify_cost.estimate(rows, 1 + length, context) for length in range(longest + 1)), max
        )
        draft = (self.draft_cost.estimate(rows, 1, context, forwards=length) for length in range(longest + 1))
        return [max(a + b, 1e-9) for a, b in zip(verify, draft, strict=True)]

    def _may_probe(self, plain: float, probe: float) -> bool:
        """Whether enough time has passed since the last draft to pay for another; both in seconds a step.

        After a long spell without drafts the drafter has much to read first: the next takes what the last took.
        """
        extra = max(probe - plain, 0.1 * plain, self._probe_seconds)
        return extra < PROBE_SHARE * self._since_draft

    def _chances(self, row: Row, limit: int) -> list[float]:
        """The probability that each of a row's drafted tokens, 1 to `limit`, is accepted."""
        own = row.acceptance
        chances: list[float] = []
        chance = 1.0
        for depth in range(limit):
            average = self._average(depth).mean
            if own is not None:
                weight = own.trials / (own.trials + PRIOR_TRIALS)
                average = weight * own.mean + (1 - weight) * average
            chance *= average
            chances.append(chance)
        return chances

    def _average(self, depth: int) -> AcceptanceRate:
        while len(self.by_depth) <= depth:
            self.by_depth.append(
                AcceptanceRate(GLOBAL_MEMORY, self.by_depth[-1].mean if self.by_depth else FIRST_GUESS)
            )
        return self.by_depth[depth]

    def learn(
        self,
        rows: Sequence[Row],
        drafted: Sequence[int],
        accepted: Sequence[int],
        informed: Sequence[bool],
        context: int,
        draft_seconds: float,
        verify_seconds: float,
    ) -> None:
        """Take in one step: per row what was drafted and accepted, and how long it took."""
        length = max(drafted)
        self.verify_cost.learn(len(rows), length + 1, context, verify_seconds)
        self._since_look += draft_seconds + verify_seconds if self._wanted else 0.0
        if not length:
            self._since_draft += verify_seconds if self._wanted else 0.0
            self._plain_spell += 1
            self._fade(rows)
            return
        self.draft_cost.learn(len(rows), 1, context, draft_seconds, forwards=length)
        if self._proving or self._plain_spell > BEHIND:
            extra = max(0.0, draft_seconds + verify_seconds - self.verify_cost.estimate(len(rows), 1, context))
            if self._proving:
                self._look_seconds += extra
            else:
                self._probe_seconds = extra
        self._since_draft = 0.0
        self._plain_spell = 0
        for row, proposed, agreed, knows in zip(rows, drafted, accepted, informed, strict=True):
            trials = min(agreed + 1, proposed)
            own = row.acceptance = row.acceptance or AcceptanceRate(ROW_MEMORY)
            own.learn(agreed, trials)
            # Guesses after a part of the text speak for their own row alone.
            for depth in range(trials if knows else 0):
                self._average(depth).learn(int(depth < agreed), 1)

    def _fade(self, rows: Sequence[Row]) -> None:
        # What was seen of a row says less the longer ago it was; without this, a row that was
        # unlucky once would never be drafted for again, since nothing more is learnt of it.
        for row in rows:
            if row.acceptance is not None:
                row.acceptance.trials *= FADING

    def report(self) -> dict[str, Any]:
        """JSON-ready: the present choice, how often each length was chosen, and the acceptance it expects."""
        total = sum(self.chosen.values())
        return {
            "current_draft_length": self._current,
            "steps_by_draft_length": {str(length): self.chosen[length] for length in sorted(self.chosen)},
            "plain_step_share": self.chosen[0] / total if total else 0.0,
            "probes": self.probes,
            "recent_acceptance_by_position": [average.mean for average in self.by_depth],
        }


def _rates(chances: Sequence[Sequence[float]], costs: Sequence[float]) -> list[float]:
    """Tokens a second at each draft length that has a cost; none has the advantage that a draft must make up."""
    expected = _expected_tokens(chances, len(costs) - 1)
    rates = [tokens / seconds for tokens, seconds in zip(expected, costs, strict=True)]
    rates[0] *= 1 + HYSTERESIS
    return rates


def _expected_tokens(chances: Sequence[Sequence[float]], longest: int) -> list[float]:
    """Tokens of one step at each draft length, 0 to `longest`: one a row, and each draft as often as it is accepted."""
    by_depth = [0.0] * longest
    for row in chances:
        for depth, chance in enumerate(row):
            by_depth[depth] += chance
    return list(accumulate(by_depth, initial=float(len(chances))))


def _worth_sampling(chances: Sequence[float]) -> int:
    """A row's draft length within the batch's: the first token always, then while reached often enough."""
    return next((max(depth, 1) for depth, chance in enumerate(chances) if chance < LEAST_CHANCE), len(chances))
