"""Runs a trace on the real engine in this process, to compare it with the simulation without HTTP.

On a clock of processor time, what else runs on the machine hardly shows. Whenever the engine is idle, the clock is put
forward to the next request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean

from parallm_openai.engine.request import Output, Request, SamplingParams
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.costs import CostModel, StepCosts
from parallm_openai.simulation.replay import Prompts
from parallm_openai.simulation.replica import Job
from parallm_openai.simulation.timed_core import Forward, TimedCore
from parallm_openai.simulation.trace import TraceRequest


def run_engine(
    model: LoadedModel,
    draft: LoadedModel | None,
    config: EngineConfig,
    trace: Sequence[TraceRequest],
    prompts: Prompts,
    clock: Callable[[], float],
) -> tuple[list[Job], list[Forward]]:
    """Every request as the engine answered it, and the forwards of its model."""
    core = TimedCore.of(model, config, draft, clock)
    run = _Run(trace, prompts, clock)
    core.deliver = run.take
    while run.due or not core.idle:
        if core.idle:
            run.skip_to_next()
        for request in run.arrived():
            core.add(request)
        run.take(core.step())
    return run.jobs, core.forwards


def slowness(forwards: Sequence[Forward], costs: StepCosts) -> tuple[float, float]:
    """How many times what the costs say the engine took to read prompts, and to decode."""
    median, mean = CostModel(costs, noise=False), fmean(costs.spread)
    taken = dict.fromkeys(("prefill", "verify"), 0.0)
    expected = dict(taken)
    for kind, rows, width, context, seconds in forwards:
        taken[kind] += seconds
        expected[kind] += mean * (median.prefill if kind == "prefill" else median.verify)(rows, width, context)
    reading, decoding = (taken[kind] / expected[kind] if expected[kind] else 1.0 for kind in taken)
    return reading, decoding


class _Run:
    def __init__(self, trace: Sequence[TraceRequest], prompts: Prompts, clock: Callable[[], float]) -> None:
        self.jobs = [Job(number, asked, replica=0) for number, asked in enumerate(trace)]
        self.due = deque(self.jobs)
        self._clock, self._began, self._skipped = clock, clock(), 0.0
        self._requests = {job.number: self._request(job, prompts) for job in self.jobs}
        self.by_id = {request.id: self.jobs[number] for number, request in self._requests.items()}
        self._sessions: dict[str, deque[Job]] = {}
        self._following: list[Job] = []

    def _request(self, job: Job, prompts: Prompts) -> Request:
        params = SamplingParams(max_tokens=job.asked.output_tokens, temperature=0.0, ignore_eos=True)
        return Request(tuple(prompts.of(job.number, job.asked)), params)

    @property
    def _now(self) -> float:
        return self._clock() - self._began + self._skipped

    def skip_to_next(self) -> None:
        if not self._following and self.due:
            self._skipped += max(0.0, self.due[0].asked.at - self._now)

    def arrived(self) -> list[Request]:
        """Those that are due, but for turns whose session has not had its last answer."""
        found, self._following = self._following, []
        while self.due and self.due[0].asked.at <= self._now:
            job = self.due.popleft()
            session = job.asked.session
            if session in self._sessions:
                self._sessions[session].append(job)
                continue
            if session is not None:
                self._sessions[session] = deque()
            job.sent_at = job.asked.at
            found.append(job)
        return [self._requests[job.number] for job in found]

    def take(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            job, now = self.by_id[output.request_id], self._now
            job.tokens += len(output.tokens)
            job.cached_tokens += output.cached_prompt_tokens
            if output.tokens and job.first_token_at is None:
                job.first_token_at = now
            if output.finish_reason is not None:
                job.ended_at = now
                self._follow(job, now)

    def _follow(self, job: Job, now: float) -> None:
        session = job.asked.session
        if session is None:
            return
        if waiting := self._sessions[session]:
            following = waiting.popleft()
            following.sent_at = now
            self._following.append(following)
        else:
            del self._sessions[session]
