"""A replica without steps, for fleets of thousands: rows that decode share a speed, and prompts are read in turn.

It tells a router how busy replicas are; latencies come from replicas that run the engine's own steps.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import simpy

from parallm_openai.engine.cache.prefix import SHORTEST_PREFIX
from parallm_openai.settings import EngineConfig
from parallm_openai.simulation.costs import CostModel, StepCosts
from parallm_openai.simulation.replica import Ended, Job
from parallm_openai.simulation.routers import Part, parts_of
from parallm_openai.simulation.trace import TraceRequest

# What rounding may leave of a piece of work.
NOTHING = 1e-9
# Seconds. Whatever rounding does, the clock moves on between two changes, and so the simulation comes to an end.
SHORTEST_WAIT = 1e-6


@dataclass(frozen=True)
class Speed:
    """A replica's speed by its number of decoding rows, from 0 up, and that of reading prompts."""

    tokens_a_row: tuple[float, ...]
    step_seconds: tuple[float, ...]
    chunk: int
    chunk_seconds: float
    forward_tokens: int
    max_prefill_seconds: float

    @classmethod
    def of(cls, costs: StepCosts, config: EngineConfig, trace: Sequence[TraceRequest]) -> Speed:
        """That of rows in the middle of the trace's answers, at the draft length that pays most."""
        context = round(sum(each.prompt_tokens + each.output_tokens / 2 for each in trace) / len(trace))
        model = CostModel(costs, noise=False)
        chance = sum(costs.acceptance) / len(costs.acceptance) if costs.acceptance else 0.0
        drafts = costs.drafter != "none" and config.use_speculative_decoding
        longest = config.max_draft_tokens if drafts else 0
        expected = list(accumulate(chance**depth for depth in range(longest + 1)))
        best = [(0.0, 0.0)]
        for rows in range(1, config.max_batch_size + 1):
            ways = [
                model.verify(rows, length + 1, context) + model.draft(rows, [1] * length, context) + model.step(rows)
                for length in range(longest + 1)
            ]
            best.append(max((tokens / seconds, seconds) for tokens, seconds in zip(expected, ways, strict=True)))
        chunk = costs.traits.prefill_tokens
        return cls(
            tokens_a_row=tuple(rate for rate, _ in best),
            step_seconds=tuple(seconds for _, seconds in best),
            chunk=chunk,
            chunk_seconds=model.prefill(1, chunk, context // 2),
            forward_tokens=costs.traits.forward_tokens,
            max_prefill_seconds=config.max_prefill_ms / 1000,
        )

    def reading(self, tokens: int) -> float:
        """Seconds to read so many tokens of a prompt."""
        forwards = -(-tokens // self.chunk)
        whole = self.chunk + self.forward_tokens
        return self.chunk_seconds * (tokens + forwards * self.forward_tokens) / whole

    def share_of_reading(self, rows: int) -> float:
        """The share of the time that goes into reading prompts while so many rows decode."""
        if not rows:
            return 1.0
        decode = self.step_seconds[rows]
        read = min(self.chunk_seconds, max(self.max_prefill_seconds, decode))
        return read / (read + decode)


class StoredStreams:
    """The streams that a replica's prefix cache has: the least recently used sequences make room for others."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._size = 0
        self._sequences: OrderedDict[Part, tuple[int, list[tuple[Part, int]]]] = OrderedDict()
        self._lengths: dict[Part, list[int]] = {}

    def match(self, request: TraceRequest) -> int:
        matched = 0
        for part, length in parts_of(request):
            stored = max(self._lengths.get(part, ()), default=0)
            matched += min(length, stored)
            if stored < length:
                break
        # A prompt's last token is computed in any case.
        matched = min(matched, request.prompt_tokens - 1)
        return matched if matched >= SHORTEST_PREFIX else 0

    def store(self, job: Job) -> None:
        request = job.asked
        parts = parts_of(request)
        size = request.prompt_tokens + request.output_tokens
        if size > self._budget:
            return
        own = request.prompt_tokens > request.shared_tokens
        name: Part = (job.number,) if own or not parts else parts[-1][0]
        if not own and parts:
            parts[-1] = (parts[-1][0], parts[-1][1] + request.output_tokens)
        if name in self._sequences:
            self._evict(name)
        self._sequences[name] = size, parts
        self._size += size
        for part, length in parts:
            self._lengths.setdefault(part, []).append(length)
        while self._size > self._budget:
            self._evict(next(iter(self._sequences)))

    def _evict(self, name: Part) -> None:
        size, parts = self._sequences.pop(name)
        self._size -= size
        for part, length in parts:
            lengths = self._lengths[part]
            lengths.remove(length)
            if not lengths:
                del self._lengths[part]


class CoarseReplica:
    def __init__(self, env: simpy.Environment, speed: Speed, config: EngineConfig, ended: Ended) -> None:
        self._env, self._speed, self._config, self._ended = env, speed, config, ended
        self._waiting: deque[Job] = deque()
        self._stored = StoredStreams(config.prefix_cache_tokens)
        self._reading: Job | None = None
        self._seconds_to_read = 0.0
        # Decoding rows by the token of each that is its last, where every row has come to the token `_at`.
        self._decoding: list[tuple[float, int, Job]] = []
        self._at = 0.0
        self._since = 0.0
        self._timer = 0

    def submit(self, job: Job) -> None:
        self._catch_up()
        self._waiting.append(job)
        self._go_on()

    def _catch_up(self) -> None:
        """Take in the time that has passed since something changed."""
        passed = self._env.now - self._since
        self._since = self._env.now
        if self._reading is not None:
            self._seconds_to_read -= passed * self._share
        self._at += passed * self._tokens_a_second

    @property
    def _share(self) -> float:
        return self._speed.share_of_reading(len(self._decoding)) if self._reading is not None else 0.0

    @property
    def _tokens_a_second(self) -> float:
        return self._speed.tokens_a_row[len(self._decoding)] * (1 - self._share)

    def _go_on(self) -> None:
        """End what has come to its end, begin what can begin, and set a timer for the next change."""
        if self._reading is not None and self._seconds_to_read <= NOTHING:
            self._start_decoding(self._reading)
            self._reading = None
        while self._decoding and self._decoding[0][0] <= self._at + NOTHING:
            self._end(heapq.heappop(self._decoding)[2])
        if self._reading is None and self._waiting and len(self._decoding) < self._config.max_batch_size:
            self._reading = job = self._waiting.popleft()
            job.cached_tokens = self._stored.match(job.asked)
            self._seconds_to_read = self._speed.reading(job.asked.prompt_tokens - job.cached_tokens)
        self._timer += 1
        waits = []
        if self._reading is not None:
            waits.append(self._seconds_to_read / self._share)
        if self._decoding and (speed := self._tokens_a_second):
            waits.append((self._decoding[0][0] - self._at) / speed)
        if waits:
            timer = self._env.timeout(max(SHORTEST_WAIT, min(waits)))
            timer.callbacks.append(partial(self._wake, self._timer))

    def _wake(self, timer: int, event: simpy.Event) -> None:
        if timer == self._timer:
            self._catch_up()
            self._go_on()

    def _start_decoding(self, job: Job) -> None:
        job.first_token_at = self._env.now
        heapq.heappush(self._decoding, (self._at + job.asked.output_tokens - 1, job.number, job))

    def _end(self, job: Job) -> None:
        job.ended_at = self._env.now
        job.tokens = job.asked.output_tokens
        self._stored.store(job)
        # It may be what the same session waits for.
        self._ended(job)
