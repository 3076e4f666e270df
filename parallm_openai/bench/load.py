"""Load on an OpenAI-compatible server: closed loop (so many at a time) or open loop (so many a second)."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from parallm_openai.bench.words import words


@dataclass(frozen=True)
class Load:
    """What is sent. `prompt_words` is the least and the most of a prompt; `rate` is requests a second."""

    model: str
    requests: int
    concurrency: int = 1
    rate: float | None = None
    max_tokens: int = 64
    prompt_words: tuple[int, int] = (8, 64)
    temperature: float = 0.0
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def bodies(self) -> list[dict[str, Any]]:
        rng = random.Random(self.seed)
        text = words(self.seed + 7, self.requests * self.prompt_words[1])
        made = []
        for _ in range(self.requests):
            count = rng.randint(*self.prompt_words)
            start = rng.randrange(len(text) - count + 1)
            made.append(
                {
                    "model": self.model,
                    "prompt": " ".join(text[start : start + count]),
                    "max_tokens": self.max_tokens,
                    "temperature": self.temperature,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    **self.extra,
                }
            )
        return made


@dataclass
class Sample:
    """One request as the client saw it; times in seconds from its start."""

    tokens: int = 0
    chunks: list[float] = field(default_factory=list)
    latency: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One run. Times in milliseconds, throughput in output tokens a second over the whole run."""

    requests: int
    errors: int
    tokens: int
    seconds: float
    throughput: float
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p95: float
    latency_p50: float
    latency_p95: float
    first_error: str | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], seconds: float) -> Measurement:
        good = [sample for sample in samples if sample.error is None]
        tokens = sum(sample.tokens for sample in good)
        first = [sample.chunks[0] for sample in good if sample.chunks]
        # Per token, since a chunk of a speculating server carries several.
        between = [
            (sample.chunks[-1] - sample.chunks[0]) / (sample.tokens - 1)
            for sample in good
            if sample.chunks and sample.tokens > 1
        ]
        latency = [sample.latency for sample in good]
        return cls(
            requests=len(samples),
            errors=len(samples) - len(good),
            tokens=tokens,
            seconds=seconds,
            throughput=tokens / seconds if seconds else 0.0,
            ttft_p50=percentile(first, 50) * 1e3,
            ttft_p95=percentile(first, 95) * 1e3,
            itl_p50=percentile(between, 50) * 1e3,
            itl_p95=percentile(between, 95) * 1e3,
            latency_p50=percentile(latency, 50) * 1e3,
            latency_p95=percentile(latency, 95) * 1e3,
            first_error=next((sample.error for sample in samples if sample.error is not None), None),
        )


def percentile(values: Sequence[float], rank: float) -> float:
    """The `rank`-th percentile, between neighbours; 0 for no values."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=1000, method="inclusive")[min(998, max(0, round(rank * 10) - 1))]


def run_load(url: str, load: Load, timeout: float = 600.0) -> Measurement:
    """Send the load to `url` (up to and without /v1) and wait for its end; `timeout` is seconds a request."""
    return asyncio.run(_run(url, load, timeout))


async def _run(url: str, load: Load, timeout: float) -> Measurement:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits) as client:
        began = time.perf_counter()
        if load.rate is None:
            samples = await _closed_loop(client, load)
        else:
            samples = await _open_loop(client, load)
        return Measurement.of(samples, time.perf_counter() - began)


async def _closed_loop(client: httpx.AsyncClient, load: Load) -> list[Sample]:
    bodies = iter(load.bodies())

    async def worker() -> list[Sample]:
        return [await _send(client, body) for body in bodies]

    return [one for samples in await asyncio.gather(*(worker() for _ in range(load.concurrency))) for one in samples]


async def _open_loop(client: httpx.AsyncClient, load: Load) -> list[Sample]:
    """Requests at random times, `rate` a second on average, however busy the server is."""
    assert load.rate is not None
    rng = random.Random(load.seed)
    tasks: list[asyncio.Task[Sample]] = []
    for body in load.bodies():
        if tasks:
            await asyncio.sleep(rng.expovariate(load.rate))
        tasks.append(asyncio.create_task(_send(client, body)))
    return list(await asyncio.gather(*tasks))


async def _send(client: httpx.AsyncClient, body: dict[str, Any]) -> Sample:
    sample = Sample()
    began = time.perf_counter()
    counted = None
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                sample.error = f"{response.status_code}: {text[:200]}"
                return sample
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    sample.error = str(chunk["error"])
                    return sample
                if usage := chunk.get("usage"):
                    counted = usage["completion_tokens"]
                if any(choice.get("text") for choice in chunk["choices"]):
                    sample.chunks.append(time.perf_counter() - began)
    except httpx.HTTPError as error:
        sample.error = f"{type(error).__name__}: {error}"
    sample.latency = time.perf_counter() - began
    # A server that does not count is taken at a token a chunk.
    sample.tokens = len(sample.chunks) if counted is None else counted
    return sample
