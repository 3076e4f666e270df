"""Counts of the engine's work since it started: the numbers behind `/v1/stats`."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from parallm_openai.engine.request import FinishReason
from parallm_openai.engine.row import Row
from parallm_openai.engine.timeline import Recent

# Of so many requests that ended last, the latencies are reported.
REQUESTS_KEPT = 512


class Latency(NamedTuple):
    """Seconds until a request's first token, and on average from one token to the next if there were several."""

    first_token: float
    between_tokens: float | None


class EngineStats:
    """Counters, written by the engine's thread; `report` reads them from any."""

    def __init__(self) -> None:
        self.started = time.time()
        self.requests = 0
        self.reasons: Counter[str] = Counter()
        self.completed = 0
        self.latency = 0.0
        self.first_tokens = 0
        self.time_to_first_token = 0.0
        self.latencies: Recent[Latency] = Recent(REQUESTS_KEPT)
        self.steps = 0
        # How often a decode step waited for the device.
        self.waits = 0
        self.rows = 0
        self.largest_batch = 0
        self.prompt_tokens = 0
        self.tokens = 0
        self.draft_seconds = 0.0
        self.verify_seconds = 0.0
        self.drafted: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self.drafting_rows = 0
        self.plain_rows = 0

    def prefilled(self, tokens: int) -> None:
        self.prompt_tokens += tokens

    def stepped(
        self,
        drafted: Sequence[int],
        accepted: Sequence[int],
        draft_seconds: float,
        verify_seconds: float,
        waits: int = 1,
    ) -> None:
        """Count one decode step: per row, how many tokens were drafted and how many of them accepted."""
        self.steps += 1
        self.waits += waits
        self.rows += len(drafted)
        self.largest_batch = max(self.largest_batch, len(drafted))
        self.draft_seconds += draft_seconds
        self.verify_seconds += verify_seconds
        for proposed, agreed in zip(drafted, accepted, strict=True):
            self.drafting_rows += proposed > 0
            self.plain_rows += proposed == 0
            self.drafted.update(range(proposed))
            self.accepted.update(range(agreed))

    def finished(self, row: Row, reason: FinishReason) -> None:
        self.reasons[reason.value] += 1
        self.tokens += row.generated
        now = time.perf_counter()
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.completed += 1
            self.latency += now - row.arrived
        if row.first_token_at is not None:
            waited = row.first_token_at - row.arrived
            self.first_tokens += 1
            self.time_to_first_token += waited
            between = (now - row.first_token_at) / (row.generated - 1) if row.generated > 1 else None
            self.latencies.add(Latency(waited, between))

    def report(self) -> dict[str, Any]:
        """JSON-ready; times in seconds."""
        return {
            "total_requests": self.requests,
            "average_latency": _ratio(self.latency, self.completed),
            "average_time_to_first_token": _ratio(self.time_to_first_token, self.first_tokens),
            "recent_latency": self._recent_latency(),
            "finish_reasons": dict(self.reasons),
            "uptime": time.time() - self.started,
            "batching_stats": {
                "total_batches": self.steps,
                "avg_batch_size": _ratio(self.rows, self.steps),
                "waits_per_step": _ratio(self.waits, self.steps),
                "max_batch_size_seen": self.largest_batch,
                "total_tokens": self.tokens,
                "prompt_tokens": self.prompt_tokens,
            },
            "speculative_stats": self._speculation(),
        }

    def _recent_latency(self) -> dict[str, Any]:
        latencies = self.latencies.items()
        return {
            "requests": len(latencies),
            "time_to_first_token": percentiles([each.first_token for each in latencies]),
            "inter_token_latency": percentiles(
                [each.between_tokens for each in latencies if each.between_tokens is not None]
            ),
        }

    def _speculation(self) -> dict[str, Any]:
        drafted, accepted = sum(self.drafted.values()), sum(self.accepted.values())
        return {
            "acceptance_rate": _ratio(accepted, drafted),
            "draft_length": _ratio(drafted, self.drafting_rows),
            "drafted_tokens": drafted,
            "accepted_tokens": accepted,
            "wasted_tokens": drafted - accepted,
            "acceptance_by_position": [
                _ratio(self.accepted[depth], self.drafted[depth]) for depth in sorted(self.drafted)
            ],
            "accepted_by_position": [self.accepted[depth] for depth in sorted(self.drafted)],
            "draft_seconds": self.draft_seconds,
            "verify_seconds": self.verify_seconds,
            "rows_drafted": self.drafting_rows,
            "rows_not_drafted": self.plain_rows,
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th, 90th and 99th percentile, between neighbours; 0 for no values."""
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [*values, 0.0][:1] * 99
    return {f"p{rank}": cuts[rank - 1] for rank in (50, 90, 99)}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
