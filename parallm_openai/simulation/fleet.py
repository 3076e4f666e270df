"""Replicas behind a router, under a trace.

Up to `exact_replicas` of them all run the engine's own steps. Of a larger fleet, every replica is simulated coarsely,
so that the router meets the loads of all. A sample of them is then run again with the engine's steps, each with the
requests that the router has sent it, at the times at which they were sent.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import simpy

from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.coarse import CoarseReplica, Speed
from parallm_openai.simulation.core import Answer, DrawnAnswer, SimulatedCore
from parallm_openai.simulation.costs import CostModel, StepCosts
from parallm_openai.simulation.replica import Ended, ExactReplica, Job, Process
from parallm_openai.simulation.routers import Router
from parallm_openai.simulation.trace import Streams, TraceRequest

EXACT_REPLICAS = 16
# Of a sample, so many are the replicas that were sent the most tokens: there the tail is.
BUSIEST = 4


class Replica(Protocol):
    def submit(self, job: Job) -> None: ...


MakeReplica = Callable[[simpy.Environment, int, Ended], Replica]


@dataclass(frozen=True)
class World:
    """What all replicas have in common. Without `noise`, forwards take their medians."""

    costs: StepCosts
    config: EngineConfig = field(default_factory=EngineConfig)
    seed: int = 0
    noise: bool = True

    def exact(self, env: simpy.Environment, number: int, ended: Ended) -> ExactReplica:
        core = SimulatedCore(
            self.config,
            self.costs.traits.of_model(),
            CostModel(self.costs, self.seed * 1_000_003 + number, self.noise),
            context_length=self.costs.context_length,
            drafts=self.costs.drafter != "none",
        )
        streams = Streams()

        def made(job: Job) -> tuple[Request, Answer]:
            prompt, token = streams.prompt(job.asked)
            params = SamplingParams(max_tokens=job.asked.output_tokens, seed=0, ignore_eos=True)
            return Request(prompt, params), self._answer(job, token)

        return ExactReplica(env, core, made, ended)

    def _answer(self, job: Job, token: int) -> Answer:
        rng = random.Random(self.seed * 1_000_003 + job.number)
        return DrawnAnswer(token, rng.choice(self.costs.acceptance or (0.0,)), rng)


class Dispatcher:
    """Sends a trace's requests: a session's one after another, each when it is due or the last has ended."""

    def __init__(self, env: simpy.Environment, router: Router, request_seconds: float) -> None:
        self._env, self._router, self._request_seconds = env, router, request_seconds
        self.replicas: Sequence[Replica] = ()
        self._sessions: dict[str, deque[Job]] = {}
        self.router_seconds = 0.0

    def run(self, jobs: Sequence[Job]) -> Process:
        for job in jobs:
            if job.asked.at > self._env.now:
                yield self._env.timeout(job.asked.at - self._env.now)
            session = job.asked.session
            if session is None:
                self._send(job)
            elif session in self._sessions:
                self._sessions[session].append(job)
            else:
                self._sessions[session] = deque()
                self._send(job)

    def _send(self, job: Job) -> None:
        began = time.process_time()
        job.replica = self._router.choose(job.asked)
        self._router.sent(job.asked, job.replica)
        self.router_seconds += time.process_time() - began
        job.sent_at = self._env.now
        on_its_way = self._env.timeout(self._request_seconds)
        on_its_way.callbacks.append(lambda event: self.replicas[job.replica].submit(job))

    def ended(self, job: Job) -> None:
        self._router.ended(job.replica)
        session = job.asked.session
        if session is None:
            return
        if following := self._sessions[session]:
            self._send(following.popleft())
        else:
            del self._sessions[session]


@dataclass(frozen=True)
class Outcome:
    """What became of a trace. `jobs` are all requests, as coarsely as they were simulated.

    `sampled` are those whose latencies count, each with how many requests it stands for.
    """

    replicas: int
    router: str
    jobs: Sequence[Job]
    sampled: Sequence[tuple[Job, float]]
    router_seconds: float
    exact: bool


def run_exactly(trace: Sequence[TraceRequest], router: Router, world: World, name: str = "") -> Outcome:
    """Every replica runs the engine's own steps."""
    jobs = _jobs(trace)
    seconds = _run(jobs, router, world.exact, world.costs.request_seconds)
    return Outcome(router.replicas, name, jobs, [(job, 1.0) for job in jobs], seconds, exact=True)


def run_sampled(trace: Sequence[TraceRequest], router: Router, world: World, sample: int, name: str = "") -> Outcome:
    """Every replica is simulated coarsely, and `sample` of them once more with the engine's own steps."""
    speed = Speed.of(world.costs, world.config, trace)

    def coarse(env: simpy.Environment, number: int, ended: Ended) -> CoarseReplica:
        return CoarseReplica(env, speed, world.config, ended)

    jobs = _jobs(trace)
    seconds = _run(jobs, router, coarse, world.costs.request_seconds)
    by_replica: list[list[Job]] = [[] for _ in range(router.replicas)]
    for job in jobs:
        by_replica[job.replica].append(job)
    sampled: list[tuple[Job, float]] = []
    for number, weight in _sample(by_replica, sample, world.seed):
        sampled += [(job, weight) for job in _again(by_replica[number], number, world)]
    return Outcome(router.replicas, name, jobs, sampled, seconds, exact=False)


def _jobs(trace: Sequence[TraceRequest]) -> list[Job]:
    turns: Counter[str] = Counter()
    jobs = []
    for number, asked in enumerate(trace):
        if asked.session is not None:
            turns[asked.session] += 1
        jobs.append(Job(number, asked, turns[asked.session] if asked.session is not None else 0))
    return jobs


def _run(jobs: Sequence[Job], router: Router, make: MakeReplica, request_seconds: float) -> float:
    """Bring the jobs, which are in the order of time, to their ends; the processor time of the router."""
    env = simpy.Environment()
    dispatcher = Dispatcher(env, router, request_seconds)
    dispatcher.replicas = [make(env, number, dispatcher.ended) for number in range(router.replicas)]
    env.process(dispatcher.run(jobs))
    env.run()
    return dispatcher.router_seconds


def _sample(by_replica: Sequence[Sequence[Job]], count: int, seed: int) -> list[tuple[int, float]]:
    """The busiest replicas, each for itself, and some of the others, each for as many as it was drawn from."""
    used = [number for number, jobs in enumerate(by_replica) if jobs]
    if count >= len(used):
        return [(number, 1.0) for number in used]
    used.sort(key=lambda number: -sum(job.asked.prompt_tokens + job.asked.output_tokens for job in by_replica[number]))
    busiest = min(BUSIEST, count // 2)
    drawn = random.Random(seed).sample(used[busiest:], count - busiest)
    weight = (len(used) - busiest) / len(drawn)
    return [*((number, 1.0) for number in used[:busiest]), *((number, weight) for number in drawn)]


def _again(jobs: Sequence[Job], number: int, world: World) -> list[Job]:
    """One replica's requests with the engine's steps, at the times at which they came.

    A turn whose session had its last one here as well waits for that one's end, as it is now.
    """
    last: dict[str, int] = {}
    repeated = []
    for job in jobs:
        asked = job.asked
        followed_here = asked.session is not None and last.get(asked.session) == job.turn - 1
        if asked.session is not None:
            last[asked.session] = job.turn
        due = asked.at if followed_here else job.sent_at
        repeated.append(Job(job.number, replace(asked, at=due), job.turn))
    repeated.sort(key=lambda job: job.asked.at)
    _run(repeated, Router(1), lambda env, _, ended: world.exact(env, number, ended), world.costs.request_seconds)
    return repeated
