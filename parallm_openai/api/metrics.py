"""Metrics for Prometheus, under vLLM's names if the meaning is the same, else under `parallm:`.

The names: https://docs.vllm.ai/en/stable/usage/metrics/
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from parallm_openai.api.running import RunningResponse
    from parallm_openai.engine.async_engine import AsyncEngine
    from parallm_openai.text.generation import Generation

MODEL = "model_name"
# vLLM's own names of reasons.
REASONS = {"cancelled": "abort"}
MEMORY = {
    "active_bytes": "Memory of MLX's arrays.",
    "peak_bytes": "The most memory that MLX's arrays have taken.",
    "cache_bytes": "Memory that MLX keeps for the next arrays.",
    "resident_bytes": "Memory of the process.",
}
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """One server's metrics: what the engine counts, and histograms of the requests that have been answered."""

    def __init__(self, engine: AsyncEngine, model: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineMetrics(engine, model))
        self._model = model
        self._first = self._histogram("vllm:time_to_first_token_seconds", "From a request to its first token.", SECONDS)
        self._between = self._histogram(
            "vllm:request_time_per_output_token_seconds", "A request's mean time from one token to the next.", SECONDS
        )
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "From a request to its end.", SECONDS)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "A request's time in the queue.", SECONDS)
        self._prefill = self._histogram(
            "vllm:request_prefill_time_seconds", "From the queue to a request's first token.", SECONDS
        )
        self._decode = self._histogram(
            "vllm:request_decode_time_seconds", "From the first token to the request's end.", SECONDS
        )
        self._prompt = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self._output = self._histogram("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS)
        self._responses = Counter(
            "parallm:http_responses",
            "HTTP requests by the status of their answer; 499 if the client left before that.",
            [MODEL, "status"],
            registry=self._registry,
        )

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, what, [MODEL], buckets=buckets, registry=self._registry)
        return made.labels(self._model)

    def answered(self, status: int) -> None:
        """Count an HTTP request, whatever it asked for."""
        self._responses.labels(self._model, str(status)).inc()

    def observe(self, running: RunningResponse, began: float) -> None:
        """Count the sequences of a request that began at this time of `time.perf_counter` and has just ended."""
        now = time.perf_counter()
        for generation in running.generations:
            self._whole.observe(now - began)
            self._prompt.observe(len(generation.prompt_tokens))
            self._output.observe(generation.counts.completion)
            self._observe_phases(generation, began, now)

    def _observe_phases(self, generation: Generation, began: float, now: float) -> None:
        admitted, first, tokens = generation.admitted_at, generation.first_token_at, generation.counts.completion
        if admitted is None or first is None:
            return
        self._queue.observe(admitted - generation.queued_at)
        self._prefill.observe(first - admitted)
        self._decode.observe(now - first)
        self._first.observe(first - began)
        if tokens > 1:
            self._between.observe((now - first) / (tokens - 1))

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class EngineMetrics(Collector):
    """What the engine itself counts, read whenever somebody asks."""

    def __init__(self, engine: AsyncEngine, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        batch, cache = stats["batching_stats"], stats["prefix_cache"]
        yield self._gauge(
            "vllm:num_requests_running",
            "Requests that prefill or decode.",
            batch["running"] + batch["prefilling"],
        )
        yield self._gauge("vllm:num_requests_waiting", "Requests in the queue.", batch["waiting"])
        yield self._counter("vllm:prompt_tokens", "Prompt tokens computed.", batch["prompt_tokens"])
        yield self._counter("vllm:generation_tokens", "Tokens of requests that have ended.", batch["total_tokens"])
        queried = batch["prompt_tokens"] + cache["hit_tokens"]
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", queried)
        yield self._counter(
            "vllm:prefix_cache_hits", "Prompt tokens that the prefix cache spared.", cache["hit_tokens"]
        )
        yield self._ended(stats["finish_reasons"])
        yield from self._speculation(stats["speculative_stats"])
        yield self._counter("parallm:decode_steps", "Decode steps.", batch["total_batches"])
        yield self._gauge("parallm:waits_per_step", "Waits for the device in a decode step.", batch["waits_per_step"])
        for name, value in stats["memory"].items():
            yield self._gauge(f"parallm:memory_{name}", MEMORY[name], value)

    def _ended(self, reasons: dict[str, int]) -> Metric:
        ended = CounterMetricFamily(
            "vllm:request_success", "Requests that have ended, by reason.", labels=[MODEL, "finished_reason"]
        )
        for reason, count in reasons.items():
            ended.add_metric([self._model, REASONS.get(reason, reason)], count)
        return ended

    def _speculation(self, stats: dict[str, Any]) -> Iterator[Metric]:
        yield self._counter("vllm:spec_decode_num_drafts", "Drafts, one for a row and step.", stats["rows_drafted"])
        yield self._counter("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", stats["drafted_tokens"])
        yield self._counter(
            "vllm:spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.", stats["accepted_tokens"]
        )
        accepted = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by depth.", labels=[MODEL, "position"]
        )
        for depth, count in enumerate(stats["accepted_by_position"]):
            accepted.add_metric([self._model, str(depth)], count)
        yield accepted
        yield self._counter("parallm:draft_seconds", "Seconds of drafting.", stats["draft_seconds"])
        yield self._counter(
            "parallm:verify_seconds", "Seconds of verifying, or of plain steps.", stats["verify_seconds"]
        )
        yield self._gauge("parallm:draft_length", "Tokens drafted in the last step.", stats["current_draft_length"])

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, what, labels=[MODEL])
        gauge.add_metric([self._model], value)
        return gauge

    def _counter(self, name: str, what: str, value: float) -> Metric:
        counter = CounterMetricFamily(name, what, labels=[MODEL])
        counter.add_metric([self._model], value)
        return counter
