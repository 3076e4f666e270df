"""The figures of a simulated run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from parallm_openai.simulation.fleet import Outcome


@dataclass(frozen=True)
class Figures:
    """Times in milliseconds, throughput in output tokens a second of the whole fleet.

    `replica_hours` are those for a million output tokens. `hit_rate` is the share of prompt tokens that stored prefixes
    spared. `busiest` is how many times the mean replica's tokens the busiest one had. `router_us` is the processor time
    of a routing decision here, in microseconds.
    """

    replicas: int
    router: str
    requests: int
    exact: bool
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    throughput: float
    replica_hours: float
    hit_rate: float
    busiest: float
    router_us: float

    @classmethod
    def of(cls, outcome: Outcome) -> Figures:
        jobs, sampled = outcome.jobs, outcome.sampled
        first = [(job.ttft, weight) for job, weight in sampled if job.ttft is not None]
        between = [(job.between_tokens, weight) for job, weight in sampled if job.between_tokens is not None]
        tokens = sum(job.tokens for job in jobs)
        # Of a sample, its replicas say when the last answer ended.
        seconds = max(job.ended_at or 0.0 for job, _ in sampled) - min(job.asked.at for job in jobs)
        work: Counter[int] = Counter()
        for job in jobs:
            work[job.replica] += job.asked.prompt_tokens + job.asked.output_tokens
        return cls(
            replicas=outcome.replicas,
            router=outcome.router,
            requests=len(jobs),
            exact=outcome.exact,
            ttft_p50=1e3 * quantile(first, 0.5),
            ttft_p99=1e3 * quantile(first, 0.99),
            itl_p50=1e3 * quantile(between, 0.5),
            itl_p99=1e3 * quantile(between, 0.99),
            throughput=tokens / seconds,
            replica_hours=outcome.replicas * seconds / 3600 / tokens * 1e6,
            hit_rate=_share(
                sum(job.cached_tokens * weight for job, weight in sampled),
                sum(job.asked.prompt_tokens * weight for job, weight in sampled),
            ),
            busiest=max(work.values()) * outcome.replicas / sum(work.values()),
            router_us=1e6 * outcome.router_seconds / len(jobs),
        )


def quantile(values: Sequence[tuple[float, float]], share: float) -> float:
    """The least value that, with those below it, has this share of the weight; 0 for no values."""
    ordered = sorted(values)
    left = share * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left <= 1e-9:
            return value
    return ordered[-1][0] if ordered else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
