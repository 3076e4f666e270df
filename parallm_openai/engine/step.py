"""One engine step: the scheduler plans it, then rows are preempted, admitted, prefilled, moved and decoded.

Everything here runs on the one thread that owns MLX.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate

import mlx.core as mx

from parallm_openai.engine import ahead, sampling
from parallm_openai.engine.batch import Batch, Bucket, Caches
from parallm_openai.engine.cache.prefix import Prefix
from parallm_openai.engine.plan import Admission, Decode, PromptForward
from parallm_openai.engine.request import FinishReason, Output, Request
from parallm_openai.engine.row import DRAFT, TARGET, Row, describe
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.scheduler import ModelTraits, Scheduler
from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.engine.stats import EngineStats
from parallm_openai.engine.timeline import Timeline
from parallm_openai.engine.verification import Verification, commit, first_tokens, score_prompt, verify
from parallm_openai.settings import EngineConfig

log = logging.getLogger(__name__)

# A row that has been in more failed steps than this ends with the error, whoever's it was.
MOST_FAILED_STEPS = 3


class EngineCore:
    """The rows and the step that advances them. Not thread-safe: its worker thread alone calls it."""

    def __init__(
        self,
        target: ModelRunner,
        drafter: Drafter,
        config: EngineConfig,
        traits: ModelTraits,
        *,
        context_length: int,
        eos_ids: frozenset[int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.config = config
        self.context_length = context_length
        self.eos_ids = eos_ids
        # What the engine times its forwards by.
        self.clock = clock
        self.scheduler = Scheduler(self._new_bucket(traits), self._new_bucket(traits), drafter, traits)
        self.stats = EngineStats()
        self.timeline = Timeline()
        # Every request that has not ended.
        self.rows: dict[int, Row] = {}
        self._outputs: list[Output] = []
        # Takes outputs that a step has before its end, if there is somebody to take them.
        self.deliver: Callable[[list[Output]], None] | None = None
        # Raises if what has been computed is not to be trusted, before anybody sees it.
        self.confirm: Callable[[], None] = lambda: None
        # The rows that share what the step is doing now.
        self._sharing: list[Row] = []

    def _new_bucket(self, traits: ModelTraits) -> Bucket:
        return Bucket(DraftLength(deferred=traits.recurrent), Batch(self._prefill_caches), Batch(self._decode_caches))

    def _runners(self) -> list[ModelRunner]:
        return [self.target, *([self.drafter.runner] if self.drafter.runner is not None else [])]

    def _prefill_caches(self) -> Caches:
        return {runner.role: runner.prefill_cache() for runner in self._runners()}

    def _decode_caches(self) -> Caches:
        return {runner.role: runner.decode_cache() for runner in self._runners()}

    @property
    def idle(self) -> bool:
        return not self.rows

    # Requests come and go

    def add(self, request: Request) -> list[Output]:
        """Queue a request. Returns its end, with an error, if its grammar cannot even begin."""
        self.stats.requests += 1
        try:
            row = Row.of(request, self.context_length, self.eos_ids)
        except BaseException as error:  # A panic of native code is no Exception.
            log.exception("a request could not be queued; it ends with an error")
            self.stats.reasons[FinishReason.ERROR.value] += 1
            return [Output(request.id, finish_reason=FinishReason.ERROR, error=describe(error))]
        self.rows[row.id] = row
        self.scheduler.waiting.append(row)
        return []

    def cancel(self, request_id: int, reason: FinishReason = FinishReason.CANCELLED) -> list[Output]:
        """Free the request's row now; nothing if it has already ended."""
        row = self.rows.get(request_id)
        if row is not None:
            with self._recovering():
                self._end(row, reason)
                self._free(row)
        return self._take_outputs()

    def cancel_all(self) -> list[Output]:
        """End every request, whatever its state."""
        return self._end_all(FinishReason.CANCELLED)

    def fail_all(self, error: str) -> list[Output]:
        """End every request with an error; the engine itself can go on."""
        return self._end_all(FinishReason.ERROR, error)

    def _end_all(self, reason: FinishReason, error: str | None = None) -> list[Output]:
        for row in list(self.rows.values()):
            self._end(row, reason, error=error)
        self.release()
        self.scheduler.waiting.clear()
        return self._take_outputs()

    def release(self) -> None:
        """Drop all rows that have been admitted, and their buffers, whatever state those are in."""
        for bucket in self.scheduler.buckets:
            bucket.prefilling.clear()
            bucket.decoding.clear()

    # The step

    def step(self) -> list[Output]:
        """Advance every row; returns what each produced.

        A failure ends the row whose fault it is. Rows that shared a forward with it begin again, and lose nothing.
        """
        with self._recovering():
            config = self.config
            self.scheduler.prefixes.evict_to(config.prefix_cache_tokens)
            self.drafter.evict(config)
            plan = self.scheduler.plan(config)
            if plan.preempt or plan.moves:
                self._catch_up()
            if plan.preempt:
                self._preempt([row for row in plan.preempt if row.batch is not None])
            for admission in plan.admit:
                self._admit(admission)
            for forward in plan.prefill:
                self._prefill(forward)
            for row, bucket in plan.moves:
                if row.batch is not None:
                    bucket.decoding.take(row)
            for decode in plan.decode:
                self._decode(decode, plan.config)
        return self._take_outputs()

    def _deliver_early(self) -> None:
        if self.deliver is not None and self._outputs:
            self.deliver(self._take_outputs())

    def _take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        if outputs:
            self.confirm()
        return outputs

    def _preempt(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._free(row)
        self.scheduler.requeue(rows)

    def _admit(self, admission: Admission) -> None:
        row, batch, prefix = admission.row, admission.bucket.prefilling, admission.prefix
        try:
            batch.append(row, prefix.rows if prefix else None, admission.length)
        except BaseException as error:  # For want of memory, as a rule.
            log.error("a row could not be admitted; it ends with an error", exc_info=error)
            self._end(row, FinishReason.ERROR, error=describe(error))
            # The caches may hold a part of the row: those that shared them begin again.
            rows = list(batch.rows)
            batch.clear()
            self.scheduler.requeue(rows)
            return
        self.scheduler.waiting.remove(row)
        row.keep_at = admission.keep_at
        if prefix is not None:
            self.scheduler.prefixes.use(prefix, admission.length)
        if not row.generated:
            row.admitted_at = self.clock()
            row.cached_prompt_tokens = admission.length

    # Prefill

    def _prefill(self, forward: PromptForward) -> None:
        batch = forward.bucket.prefilling
        with self._shared_by(batch.rows):
            if not batch.rows:
                return
            began = self.clock()
            context = max(row.computed[TARGET].length for row in batch.rows)
            tokens = len(batch.rows) * forward.width
            self._compute_prompts(batch, forward.width, began)
            # Whoever waits for a first token does not wait for the rest of the step.
            self._deliver_early()
            self._read_along(forward)
            self.scheduler.prefill_speed.learn(tokens, context, self.clock() - began)
            for row, bucket in forward.through.items():
                if row.batch is batch:
                    self._start_decoding(row, bucket)

    def _compute_prompts(self, batch: Batch, width: int, began: float) -> None:
        """Compute a chunk of each prompt, and the first token of the rows whose prompts end with it."""
        rows = list(batch.rows)
        chunks = [row.uncomputed_tokens[:width] for row in rows]
        wanted = [
            len(chunk) if row.scores_prompt else int(len(chunk) == row.unread)
            for row, chunk in zip(rows, chunks, strict=True)
        ]
        logits = self.target.prefill(batch, chunks, wanted)
        batch.keep_beginnings(TARGET)
        places: dict[Row, int] = {}
        for row, chunk, end in zip(rows, chunks, accumulate(wanted), strict=True):
            self.stats.prefilled(len(chunk))
            if row.scores_prompt:
                row.prompt_logprobs += score_prompt(row, logits[end - len(chunk) : end])
            if not row.unread:
                places[row] = end - 1
        self._sample_first(places, logits, began)

    def _sample_first(self, places: Mapping[Row, int], logits: mx.array, began: float) -> None:
        """Rows have computed their prompts; `places` says which of the logits follow them."""
        for row in places:
            if row.remaining <= 0:
                self._report_prompt(row)
                self._end(row, FinishReason.LENGTH, Output(row.id, cached_prompt_tokens=row.cached_prompt_tokens))
                self._free(row)
        going_on = [row for row in places if not row.ended]
        if going_on:
            verified = self._first_tokens(going_on, logits, [places[row] for row in going_on])
            # Not before: if sampling fails, these rows read their prompts once more.
            for row in going_on:
                self._report_prompt(row)
            self.timeline.record(began, 0.0, self.clock() - began, self._commit_all(verified))

    def _report_prompt(self, row: Row) -> None:
        if row.scores_prompt:
            self._outputs.append(Output(row.id, prompt_logprobs=(None, *row.prompt_logprobs)))

    def _first_tokens(self, rows: Sequence[Row], logits: mx.array, places: list[int]) -> list[Verification]:
        return first_tokens(rows, logits[mx.array(places)])

    def _read_along(self, forward: PromptForward) -> None:
        """The draft model computes the same prompts, or a few of them to explore."""
        batch = forward.bucket.prefilling
        reading = forward.drafting.intersection(batch.rows)
        if not reading:
            return
        began = self.clock()
        self.drafter.read_along(batch, reading, forward.width)
        batch.keep_beginnings(DRAFT)
        if forward.exploring:
            forward.bucket.draft_length.record_prefill_exploration(self.clock() - began)

    def _start_decoding(self, row: Row, bucket: Bucket) -> None:
        """A row has computed its prompt, and goes on."""
        if row.batch is bucket.prefilling:
            # The others that prefill come next.
            bucket.decoding.reserve(len(bucket.decoding.rows) + len(bucket.prefilling.rows))
        row.hidden.compact()
        bucket.decoding.take(row)
        self._store_prefix(row)

    # Decode

    def _decode(self, decode: Decode, config: EngineConfig) -> None:
        batch = decode.bucket.decoding
        if not batch.rows:
            return
        with self._shared_by(batch.rows):
            if decode.ahead or batch.ahead is not None:
                self._decode_ahead(decode)
            else:
                self._speculate(decode, config)

    def _speculate(self, decode: Decode, config: EngineConfig) -> None:
        """Draft, if the plan says so, and verify."""
        batch, draft_length = decode.bucket.decoding, decode.bucket.draft_length
        started = self.clock()
        context = max(row.computed[TARGET].length for row in batch.rows)
        lengths = [min(decode.draft_lengths.get(row, 0), row.remaining - 1) for row in batch.rows]
        copied = [row in decode.copied for row in batch.rows]
        drafts = self.drafter.propose(batch, lengths, config.speculative_acceptance, copied)
        drafted_at = self.clock()
        verified = self._verify(batch, drafts, config)
        draft_seconds, verify_seconds = drafted_at - started, self.clock() - drafted_at
        accepted = [each.accepted for each in verified]
        draft_length.learn(batch.rows, drafts.lengths, accepted, context, draft_seconds, verify_seconds, copied)
        self._commit_decoded(verified, started, draft_seconds, verify_seconds, drafts.waits + 1)

    def _verify(self, batch: Batch, drafts: Drafts, config: EngineConfig) -> list[Verification]:
        return verify(self.target, batch, drafts, config.speculative_acceptance)

    def _decode_ahead(self, decode: Decode) -> None:
        """Commit the tokens that are on their way, after the next ones have been sent off."""
        batch, draft_length = decode.bucket.decoding, decode.bucket.draft_length
        started, rows, steady = self.clock(), list(batch.rows), batch.ahead is not None and decode.ahead
        context = max(row.computed[TARGET].length for row in rows)
        verified = ahead.advance(self.target, batch, decode.ahead)
        seconds, none = self.clock() - started, [0] * len(verified)
        if steady and len(verified) == len(rows):
            draft_length.learn(rows, none, none, context, 0.0, seconds)
        self._commit_decoded(verified, started, 0.0, seconds)

    def _catch_up(self) -> None:
        """Commit whatever is on its way: rows are about to leave their batches."""
        for batch in [bucket.decoding for bucket in self.scheduler.buckets]:
            with self._shared_by(batch.rows):
                self._commit_decoded(ahead.finish(batch), self.clock(), 0.0, 0.0)

    def _commit_decoded(
        self,
        verified: Sequence[Verification],
        started: float,
        draft_seconds: float,
        verify_seconds: float,
        waits: int = 1,
    ) -> None:
        if not verified:
            return
        drafted, accepted = [len(each.draft) for each in verified], [each.accepted for each in verified]
        self.stats.stepped(drafted, accepted, draft_seconds, verify_seconds, waits)
        self.scheduler.decode_seconds = draft_seconds + verify_seconds
        for each in verified:
            each.row.cleared, each.row.suspect = each.row.suspect, False
            self.drafter.learn(each.row, each.next_tokens)
        self.timeline.record(started, draft_seconds, verify_seconds, self._commit_all(verified))

    def _commit_all(self, verified: Sequence[Verification]) -> list[Output]:
        """Commit what each row accepts, free those that end with it, and return what is reported of each."""
        before = len(self._outputs)
        for each in verified:
            output, reason = commit(each)
            if reason is None:
                self._outputs.append(output)
            else:
                self._end(each.row, reason, output, each.row.failure)
        for row in [each.row for each in verified if each.row.ended]:
            self._free(row)
        if any(sampling.NO_TOKEN in each.sampled for each in verified):
            self._forget_not_numbers()
        return self._outputs[before:]

    # Rows leave

    def _end(self, row: Row, reason: FinishReason, output: Output | None = None, error: str | None = None) -> None:
        """Report a request's end, once; `output` is what its last step produced."""
        if row.ended:
            return
        row.ended = True
        del self.rows[row.id]
        last = output or Output(row.id)
        self._outputs.append(replace(last, finish_reason=reason, error=error, request_at_fault=row.at_fault))
        self.stats.finished(row, reason)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.drafter.ended(row, self.config)

    def _free(self, row: Row) -> None:
        """A row leaves its batch, or the queue; a prompt that it has computed is stored for others."""
        if row.batch is None:
            self.scheduler.waiting.remove(row)
            return
        if row.unread <= 1:
            self._store_prefix(row)
        row.batch.remove(row)

    def _store_prefix(self, row: Row) -> None:
        """Store a copy of what a row has computed, if it is worth that."""
        prefixes, budget, tokens = self.scheduler.prefixes, self.config.prefix_cache_tokens, row.computed_tokens
        if not prefixes.should_store(tokens, row.blocks, budget):
            return
        assert row.batch is not None
        try:
            stored = row.batch.copy_of(row)
        except Exception as error:
            # The rows that run need the memory more.
            log.warning("a prefix could not be stored (%s); those stored are evicted", describe(error))
            prefixes.evict_to(0)
            return
        if TARGET in stored:
            prefixes.store(Prefix.of(tokens, row.blocks, stored), budget)

    # Failures

    @property
    def recovers(self) -> bool:
        """Whether rows can begin again after a step that failed: not if other ranks may be in the middle of it."""
        return not self.target.shared

    @contextmanager
    def _shared_by(self, rows: Sequence[Row]) -> Iterator[None]:
        """For the length of a block, a failure may be the fault of any of these rows."""
        self._sharing = list(rows)
        yield
        self._sharing = []

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        """If the block fails, all rows begin again from the tokens that they have.

        Nobody knows in what state the caches are then, nor whose the failure was: rows that shared a forward get the
        next one alone. A row that fails alone, or again and again, ends with the error.
        """
        self._sharing = []
        try:
            yield
        except BaseException as error:  # A panic of native code is no Exception.
            if not self.recovers:
                raise
            shared = self._sharing
            log.error("a step failed for %d rows", len(shared) or len(self.rows), exc_info=error)
            for row in shared or list(self.rows.values()):
                row.failed_steps += 1
                row.suspect |= bool(shared)
                if len(shared) == 1 or row.failed_steps > MOST_FAILED_STEPS:
                    self._end(row, FinishReason.ERROR, error=describe(error))
            self._restart()

    def _restart(self) -> None:
        """Every admitted row goes back to the queue, and the caches are made anew."""
        self.release()
        waiting = set(self.scheduler.waiting)
        self.scheduler.requeue([row for row in self.rows.values() if row not in waiting])

    def _forget_not_numbers(self) -> None:
        """What a NaN was written to would reach later rows through their masks: nothing of it stays."""
        self.scheduler.prefixes.evict_to(0)
        self._restart()
