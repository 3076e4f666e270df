"""Synthetic traces: when requests come, and what they ask for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from parallm_openai.simulation.trace import TraceRequest

Arrivals = Literal["poisson", "bursty", "diurnal"]
Content = Literal["single", "shared", "agents"]
# A prompt has a token of its own, and an answer has one.
LEAST_ROOM = 2


@dataclass(frozen=True)
class Workload:
    """So many requests a second on average, for so many seconds.

    A prompt's own tokens and an answer's tokens are drawn from exponential distributions with these means. They are cut
    off where they would not fit into `longest`, the context: a prompt's own part takes at most half of what is left.
    `shared` prompts begin with one of `system_prompts`, which are asked for the more often the earlier they stand
    (Zipf's law). `agents` have so many turns on average, each of which begins with all that the session has had before,
    and think in between. A session whose context is full ends.
    """

    rate: float
    seconds: float
    arrivals: Arrivals = "poisson"
    content: Content = "single"
    prompt_tokens: int = 128
    output_tokens: int = 64
    system_prompts: int = 64
    system_tokens: int = 256
    turns: float = 6.0
    think_seconds: float = 5.0
    longest: int = 8192
    seed: int = 0

    def requests(self) -> list[TraceRequest]:
        """The trace. `longest` must have room for `LEAST_ROOM` tokens besides those that are shared."""
        rng = random.Random(self.seed)
        made = [request for at in self._times(rng) for request in CONTENTS[self.content](self, at, rng)]
        return sorted(made, key=lambda request: request.at)

    def _times(self, rng: random.Random) -> Iterator[float]:
        """Arrivals of a process whose rate changes, by thinning one of its highest rate."""
        rate = self.rate / (self.turns if self.content == "agents" else 1.0)
        factor, highest = FACTORS[self.arrivals](self, rng)
        at = rng.expovariate(rate * highest)
        while at < self.seconds:
            if rng.random() * highest < factor(at):
                yield at
            at += rng.expovariate(rate * highest)

    def _lengths(self, rng: random.Random, room: int) -> tuple[int, int]:
        """Tokens of a prompt's own part and of its answer, which fit into `room` together."""
        prompt = _drawn(rng, self.prompt_tokens, room // 2)
        return prompt, _drawn(rng, self.output_tokens, room - prompt)


Factor = Callable[[float], float]
# Bursts have four times the mean rate, and a fifth of the time; they last so many seconds on average.
BURST, BURST_SHARE, BURST_SECONDS = 4.0, 0.2, 5.0


def _steady(workload: Workload, rng: random.Random) -> tuple[Factor, float]:
    return lambda at: 1.0, 1.0


def _bursty(workload: Workload, rng: random.Random) -> tuple[Factor, float]:
    """Two states that follow each other at random: a Markov-modulated Poisson process."""
    calm = (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE)
    ends, bursting = [0.0], rng.random() < BURST_SHARE
    first = bursting
    while ends[-1] < workload.seconds:
        mean = BURST_SECONDS if bursting else BURST_SECONDS * (1 - BURST_SHARE) / BURST_SHARE
        ends.append(ends[-1] + rng.expovariate(1 / mean))
        bursting = not bursting
    states = iter(ends[1:])
    state = {"burst": first, "end": next(states)}

    def factor(at: float) -> float:
        # Asked in the order of time.
        while at >= state["end"]:
            state.update(burst=not state["burst"], end=next(states))
        return BURST if state["burst"] else calm

    return factor, BURST


def _diurnal(workload: Workload, rng: random.Random) -> tuple[Factor, float]:
    """A day that is as long as the trace: nearly nothing at night, nearly twice the mean at noon."""
    return lambda at: 1 - 0.9 * math.cos(2 * math.pi * at / workload.seconds), 1.9


FACTORS: Mapping[Arrivals, Callable[[Workload, random.Random], tuple[Factor, float]]] = {
    "poisson": _steady,
    "bursty": _bursty,
    "diurnal": _diurnal,
}


def _single(workload: Workload, at: float, rng: random.Random) -> Iterator[TraceRequest]:
    prompt, output = workload._lengths(rng, workload.longest)
    yield TraceRequest(at, prompt, output)


def _system(workload: Workload, rng: random.Random) -> tuple[str, int]:
    """A system prompt, by Zipf's law."""
    [rank] = rng.choices(range(1, workload.system_prompts + 1), cum_weights=_zipf(workload.system_prompts))
    return f"system-{rank}", workload.system_tokens


@lru_cache(maxsize=1)
def _zipf(count: int) -> Sequence[float]:
    """The weights of the first so many ranks, summed up."""
    return tuple(accumulate(1 / rank for rank in range(1, count + 1)))


def _shared(workload: Workload, at: float, rng: random.Random) -> Iterator[TraceRequest]:
    system = _system(workload, rng)
    prompt, output = workload._lengths(rng, workload.longest - system[1])
    yield TraceRequest(at, system[1] + prompt, output, (system,))


def _agents(workload: Workload, at: float, rng: random.Random) -> Iterator[TraceRequest]:
    system, name = _system(workload, rng), f"session-{rng.getrandbits(48):012x}"
    so_far = 0
    while (room := workload.longest - system[1] - so_far) >= LEAST_ROOM:
        prompt, output = workload._lengths(rng, room)
        so_far += prompt
        yield TraceRequest(at, system[1] + so_far, output, (system, (name, so_far)), name)
        so_far += output
        at += rng.expovariate(1 / workload.think_seconds)
        if rng.random() < 1 / workload.turns:
            return


CONTENTS: Mapping[Content, Callable[[Workload, float, random.Random], Iterator[TraceRequest]]] = {
    "single": _single,
    "shared": _shared,
    "agents": _agents,
}


def _drawn(rng: random.Random, mean: int, most: int) -> int:
    return max(1, min(round(rng.expovariate(1 / mean)), most))
