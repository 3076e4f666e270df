"""Requests as their clients saw them, and the figures of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from parallm_openai.simulation.trace import TraceRequest


@dataclass
class Sample:
    """One request. Times in seconds from its start; `tokens` and `prompt_tokens` as the server counts them.

    `client` is who sent it, if each client sends one request after another.
    `begun` is set with the first text, and at the end at the latest.
    """

    long: bool = False
    client: str | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    chunks: list[float] = field(default_factory=list)
    latency: float = 0.0
    error: str | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _start: float = 0.0

    def start(self) -> None:
        self._start = time.perf_counter()

    def see_text(self) -> None:
        """Text has come just now."""
        self.chunks.append(time.perf_counter() - self._start)
        self.begun.set()

    def end(self, error: str | None = None) -> None:
        """The answer is complete, or has failed with this error."""
        self.latency = time.perf_counter() - self._start
        # A server that does not count is taken at a token a chunk.
        self.tokens = len(self.chunks) if self.tokens is None else self.tokens
        self.error = error or (None if self.tokens else "the answer has no tokens")
        self.begun.set()

    def sent(self, began: float) -> TraceRequest | None:
        """What a trace says of it that began then; None if it failed, or the server does not count."""
        if self.error is not None or not self.prompt_tokens or not self.tokens:
            return None
        return TraceRequest(max(0.0, self._start - began), self.prompt_tokens, self.tokens, session=self.client)

    @property
    def longest_gap(self) -> float | None:
        """The longest wait between two chunks, in seconds; None if there are no two."""
        return max((after - before for before, after in pairwise(self.chunks)), default=None)


@dataclass(frozen=True)
class Waits:
    """How long the requests of one kind waited, in milliseconds; None for what did not occur, as if nothing streams.

    `ttft` is the time to the first text, `itl` the mean time between two tokens of a stream, `gap` the longest time
    between two of its chunks. `prompt_tokens` is a median.
    """

    requests: int
    prompt_tokens: float | None
    ttft_p50: float | None
    ttft_p95: float | None
    itl_p50: float | None
    itl_p95: float | None
    gap_p50: float | None
    gap_max: float | None
    latency_p50: float | None
    latency_p95: float | None

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Waits:
        """Of samples without errors."""
        prompts = [sample.prompt_tokens for sample in samples if sample.prompt_tokens is not None]
        first = [sample.chunks[0] for sample in samples if sample.chunks]
        # Per token, since a chunk of a speculating server carries several.
        between = [
            (sample.chunks[-1] - sample.chunks[0]) / (sample.tokens - 1)
            for sample in samples
            if len(sample.chunks) > 1 and sample.tokens is not None and sample.tokens > 1
        ]
        gaps = [sample.longest_gap for sample in samples if sample.longest_gap is not None]
        latency = [sample.latency for sample in samples]
        return cls(
            requests=len(samples),
            prompt_tokens=percentile(prompts, 50),
            ttft_p50=_milliseconds(first, 50),
            ttft_p95=_milliseconds(first, 95),
            itl_p50=_milliseconds(between, 50),
            itl_p95=_milliseconds(between, 95),
            gap_p50=_milliseconds(gaps, 50),
            gap_max=_milliseconds(gaps, 100),
            latency_p50=_milliseconds(latency, 50),
            latency_p95=_milliseconds(latency, 95),
        )


@dataclass(frozen=True)
class Measurement:
    """One run; throughput in output tokens a second over all of it.

    `client_seconds` is the processor time of the clients themselves, None if it cannot be told from the server's.
    `short` are all requests but those with a long prompt.
    """

    requests: int
    errors: int
    tokens: int
    seconds: float
    throughput: float
    client_seconds: float | None
    short: Waits
    long: Waits | None = None
    first_error: str | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], seconds: float, client_seconds: float | None = None) -> Measurement:
        good = [sample for sample in samples if sample.error is None]
        tokens = sum(sample.tokens or 0 for sample in good)
        long = [sample for sample in good if sample.long]
        return cls(
            requests=len(samples),
            errors=len(samples) - len(good),
            tokens=tokens,
            seconds=seconds,
            throughput=tokens / seconds if seconds else 0.0,
            client_seconds=client_seconds,
            short=Waits.of([sample for sample in good if not sample.long]),
            long=Waits.of(long) if long else None,
            first_error=next((sample.error for sample in samples if sample.error is not None), None),
        )


def percentile(values: Sequence[float], rank: float) -> float | None:
    """The `rank`-th percentile, between neighbours; None for no values."""
    if not values:
        return None
    # numpy takes a while to import, and `--help` needs none.
    import numpy as np

    return float(np.percentile(values, rank))


def _milliseconds(seconds: Sequence[float], rank: float) -> float | None:
    value = percentile(seconds, rank)
    return None if value is None else value * 1e3
