"""One engine step: admit, prefill a chunk, draft, verify, sample, commit.

Everything here runs on the one thread that owns MLX.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import mlx.core as mx

from parallm_openai.config import EngineConfig
from parallm_openai.engine import sampling
from parallm_openai.engine.lane import Lane
from parallm_openai.engine.request import FinishReason, Output, Request, TokenLogprob
from parallm_openai.engine.row import Row, describe
from parallm_openai.engine.scheduler import Scheduler
from parallm_openai.engine.speculation.acceptance import coupled, rejection
from parallm_openai.engine.speculation.drafter import Draft, Drafter
from parallm_openai.engine.stats import EngineStats

log = logging.getLogger(__name__)

# A row that has been in more failed steps than this ends with the error, whoever's it was.
MOST_FAILED_STEPS = 3


class EngineCore:
    """The batch and the step that moves it on. Not thread-safe: its worker thread alone calls it.

    `fast_width` is the most tokens a row that one forward reads cheaply, where kernels have such a bound:
    longer drafts are then made only where their length is fixed.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        config: EngineConfig,
        *,
        context_length: int,
        eos_ids: frozenset[int],
        waste_limit: int,
        forward_tokens: int,
        fast_width: int | None = None,
    ) -> None:
        self.scheduler = Scheduler(lanes, waste_limit, forward_tokens)
        self.config = config
        self.context_length = context_length
        self.eos_ids = eos_ids
        self.fast_width = fast_width
        self.stats = EngineStats()
        self._outputs: list[Output] = []
        self._not_numbers = False

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        return self.scheduler.lanes

    @property
    def drafter_name(self) -> str:
        return self.scheduler.common.drafter.name

    @property
    def can_draft(self) -> bool:
        return self.drafter_name != Drafter.name and self.scheduler.common.target.ragged

    def add(self, request: Request) -> list[Output]:
        """Queue a request. Returns its end, with an error, if its grammar cannot even begin."""
        self.stats.requests += 1
        try:
            self.scheduler.waiting.append(Row.of(request, self.context_length, self.eos_ids))
        except BaseException as error:  # A panic of native code is no Exception.
            log.exception("a request could not be queued; it ends with an error")
            self.stats.reasons[FinishReason.ERROR.value] += 1
            return [Output(request.id, finish_reason=FinishReason.ERROR, error=describe(error))]
        return []

    def cancel(self, request_id: int, reason: FinishReason = FinishReason.CANCELLED) -> list[Output]:
        """Free the request's row now; nothing if it has already ended."""
        self._guarded(partial(self._cancel, request_id, reason), "cancelling")
        return self._take_outputs()

    def _cancel(self, request_id: int, reason: FinishReason) -> None:
        row = next((row for row in self.scheduler.all_rows if row.id == request_id), None)
        if row is None:
            return
        self._end(row, reason)
        for lane in self.lanes:
            if row in lane.prefilling:
                lane.drop_prefilling(lane.prefilling.index(row))
            elif row in lane.running:
                self.scheduler.retire(lane, lane.running.index(row), self.config)
        self.scheduler.requeue(())

    def cancel_all(self) -> list[Output]:
        """End every request, whatever its state."""
        return self._end_all(FinishReason.CANCELLED)

    def fail_all(self, error: str) -> list[Output]:
        """End every request with an error; the engine itself can go on."""
        return self._end_all(FinishReason.ERROR, error)

    def _end_all(self, reason: FinishReason, error: str | None = None) -> list[Output]:
        rows = [*self.scheduler.clear(), *self.scheduler.waiting]
        self.scheduler.waiting.clear()
        for row in rows:
            self._end(row, reason, error=error)
        return self._take_outputs()

    def release(self) -> None:
        """Free the buffers that rows were in. Only while idle."""
        self.scheduler.clear()

    def step(self) -> list[Output]:
        """Advance every row; returns what each produced.

        A failure ends the row whose it is. Rows that shared a forward with it begin again, and lose nothing.
        """
        self._guarded(self._admit, "admission")
        for lane in self.lanes:
            if lane.prefilling:
                self._guarded(partial(self._prefill, lane), "prefill", lane.prefilling)
        self._guarded(self.scheduler.rebalance, "moving rows")
        for lane in self.lanes:
            if lane.running:
                self._guarded(partial(self._decode, lane), "decode", lane.running)
        self.scheduler.park_cleared()
        return self._take_outputs()

    def _admit(self) -> None:
        while lane := self.scheduler.overflowing(self.config):
            self.scheduler.requeue_newest(lane, self.config)
        self.scheduler.prefixes.fit(self.config.prefix_cache_tokens)
        for row, error in self.scheduler.admit(self.config):
            log.error("a row could not be admitted; it ends with an error", exc_info=error)
            self._end(row, FinishReason.ERROR, error=describe(error))

    def _take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    # Prefill

    def _prefill(self, lane: Lane) -> None:
        share = self.scheduler.prefill_share(lane, self.config)
        while lane.prefilling and share:
            width = self.scheduler.prefill_width(lane, lane.target.unread(lane.prefilling), share)
            if width:
                self._read_prompts(lane, width)
            share -= width
            self._promote_read(lane)

    def _read_prompts(self, lane: Lane, width: int) -> None:
        rows, cache = lane.prefilling, lane.target.prefilling
        before = list(cache.lengths)
        logits = lane.target.prefill(rows, width)
        if any(map(self._wants_drafts, rows)):
            self._read_for_drafts(lane, width)
        self.stats.prefilled(sum(cache.lengths) - sum(before))
        for index, row in enumerate(rows):
            if row.scores_prompt and not row.generated:
                read = cache.lengths[index] - before[index]
                self._score_prompt(row, logits[index, :read], before[index])

    def _read_for_drafts(self, lane: Lane, width: int) -> None:
        """The drafter reads along where that will pay, and now and then to see whether it would."""
        if self._will_draft(lane):
            lane.drafter.prefill(lane.prefilling, width)
        elif seen := lane.draft_length.look_at(lane.prefilling):
            began = time.perf_counter()
            lane.drafter.prefill(seen, width)
            lane.draft_length.looked(time.perf_counter() - began)

    def _will_draft(self, lane: Lane) -> bool:
        """Whether the rows that prefill are likely to be drafted for once they decode."""
        if self.config.draft_length != "auto":
            return True
        together = len(lane.prefilling) + len(lane.running)
        context = max(len(row.tokens) for row in (*lane.prefilling, *lane.running))
        return lane.draft_length.hopeful(together, context, self._longest_draft)

    def _score_prompt(self, row: Row, logits: mx.array, start: int) -> None:
        following = row.tokens[start + 1 : start + 1 + logits.shape[0]]
        tops = [row.request.params.prompt_logprobs or 0] * len(following)
        row.prompt_logprobs += sampling.token_logprobs(logits, following, tops) if following else []

    def _promote_read(self, lane: Lane) -> None:
        for index in reversed(range(len(lane.prefilling))):
            if lane.target.prefilling.lengths[index] == len(lane.prefilling[index].tokens) - 1:
                self._promote(lane, index)

    def _promote(self, lane: Lane, index: int) -> None:
        row = lane.prefilling[index]
        if row.scores_prompt and not row.generated:
            self._outputs.append(Output(row.id, prompt_logprobs=(None, *row.prompt_logprobs)))
        if row.remaining <= 0:
            self._end(row, FinishReason.LENGTH, Output(row.id, cached_prompt_tokens=row.cached))
            lane.drop_prefilling(index)
            return
        chosen = self.scheduler.lane_for(row)
        chosen.promote(lane, index)
        self.scheduler.remember(chosen, len(chosen.running) - 1, self.config)

    # Decode

    def _decode(self, lane: Lane) -> None:
        started = time.perf_counter()
        rows = lane.running
        lengths = lane.target.decoding.lengths
        context = max(lengths)
        drafts = self._draft(lane, context)
        drafted_at = time.perf_counter()
        inputs = [
            (*row.tokens[length:], *draft.tokens) for row, length, draft in zip(rows, lengths, drafts, strict=True)
        ]
        logits = lane.target.decode(inputs)
        flat = _flatten(logits, [len(draft) + 1 for draft in drafts])
        sampled, scored = self._sample(rows, drafts, flat)
        drafted = [len(draft) for draft in drafts]
        accepted = [agreeing(draft.tokens, own) for draft, own in zip(drafts, sampled, strict=True)]
        draft_seconds, verify_seconds = drafted_at - started, time.perf_counter() - drafted_at
        self.stats.stepped(drafted, accepted, draft_seconds, verify_seconds)
        lane.draft_length.learn(rows, drafts, accepted, context, draft_seconds, verify_seconds)
        self._commit(lane, sampled, scored, drafted, accepted)
        if self._not_numbers:
            self._forget_not_numbers()

    def _draft(self, lane: Lane, context: int) -> list[Draft]:
        rows, lengths = lane.running, lane.target.decoding.lengths
        limits = [self._draft_limit(row) for row in rows]
        acceptance = self.config.speculative_acceptance
        fixed = None if self.config.draft_length == "auto" else self.config.draft_length
        if lane.drafter.free:
            proposed = lane.drafter.propose(rows, lengths, limits, acceptance)
            chosen = lane.draft_length.choose(rows, [len(draft) for draft in proposed], context, fixed)
            return [draft.cut(length) for draft, length in zip(proposed, chosen, strict=True)]
        chosen = lane.draft_length.choose(rows, limits, context, fixed)
        return lane.drafter.propose(rows, lengths, chosen, acceptance)

    @property
    def _longest_draft(self) -> int:
        if self.fast_width is None or self.config.draft_length != "auto":
            return self.config.max_draft_tokens
        return min(self.config.max_draft_tokens, self.fast_width - 1)

    def _draft_limit(self, row: Row) -> int:
        """How many tokens to draft for a row: the last one that it may still generate needs no draft."""
        if not self._wants_drafts(row):
            return 0
        return min(self._longest_draft, row.remaining - 1)

    def _wants_drafts(self, row: Row) -> bool:
        if not self.can_draft:
            return False
        wanted = row.request.params.use_speculative
        return self.config.use_speculative_decoding if wanted is None else wanted

    def _sample(
        self, rows: Sequence[Row], drafts: Sequence[Draft], flat: mx.array
    ) -> tuple[list[list[int]], list[list[TokenLogprob]]]:
        """Sample each row after its committed tokens and after each of its drafts; `flat` is `[positions, vocab]`."""
        depths = [len(draft) + 1 for draft in drafts]
        positions = [p for row, draft in zip(rows, drafts, strict=True) for p in row.positions(draft.tokens)]
        choose = rejection if self.config.speculative_acceptance == "rejection" else coupled
        tokens = choose(flat, positions, drafts)
        scored = self._score(rows, depths, flat, tokens)
        sampled: list[list[int]] = []
        start = 0
        for depth in depths:
            sampled.append(tokens[start : start + depth])
            start += depth
        return sampled, scored

    def _score(
        self, rows: Sequence[Row], depths: Sequence[int], flat: mx.array, tokens: list[int]
    ) -> list[list[TokenLogprob]]:
        """Log-probabilities of the sampled tokens for the rows that want them."""
        scored: list[list[TokenLogprob]] = [[] for _ in rows]
        start = 0
        for index, (row, depth) in enumerate(zip(rows, depths, strict=True)):
            top = row.request.params.logprobs
            here = slice(start, start + depth)
            start += depth
            if top is None:
                continue
            try:
                scored[index] = sampling.token_logprobs(flat[here], tokens[here], [top] * depth)
            except Exception as error:
                row.fail(error)
        return scored

    def _commit(
        self,
        lane: Lane,
        sampled: list[list[int]],
        scored: list[list[TokenLogprob]],
        drafted: Sequence[int],
        accepted: Sequence[int],
    ) -> None:
        """Keep what was accepted, cut where a row ends, and free the rows that have ended."""
        counts: list[int] = []
        ended: list[int] = []
        for index, row in enumerate(lane.running):
            before = len(row.tokens)
            kept, reason, stop_token = self._extend(row, sampled[index][: accepted[index] + 1])
            # The row's last token was read together with the drafts that it kept; its newest is pending.
            counts.append(max(1, len(row.tokens) - before))
            cached, row.cached = row.cached, 0
            if row.first_token_at is None:
                row.first_token_at = time.perf_counter()
            output = Output(
                row.id,
                tokens=tuple(kept),
                logprobs=tuple(scored[index][: len(kept) + (stop_token is not None)]),
                stop_token=stop_token,
                drafted=drafted[index],
                accepted=min(accepted[index], len(kept)),
                cached_prompt_tokens=cached,
            )
            row.cleared, row.alone = row.alone, False
            if reason is None:
                self._outputs.append(output)
            else:
                ended.append(index)
                self._end(row, reason, output, row.failure)
        lane.target.decoding.commit(counts)
        for index in reversed(ended):
            self.scheduler.retire(lane, index, self.config)

    def _end(self, row: Row, reason: FinishReason, output: Output | None = None, error: str | None = None) -> None:
        """Close a request's books, once; `output` is what its last step produced."""
        if row.ended:
            return
        row.ended = True
        last = output or Output(row.id)
        self._outputs.append(replace(last, finish_reason=reason, error=error, request_at_fault=row.at_fault))
        self.stats.finished(row, reason)
        for lane in self.lanes:
            lane.draft_length.forget(row)

    # Failures

    def _guarded(self, part: Callable[[], None], name: str, rows: Sequence[Row] = ()) -> None:
        """Run one part of the step, in which `rows` share a forward.

        If it fails, all rows begin again from the tokens that they have, for nobody knows in what state the caches
        are; and nobody knows whose the failure was, so that those that shared a forward get the next one alone.
        A row that fails alone, or again and again, ends with the error.
        """
        try:
            part()
        except BaseException as error:  # A panic of native code is no Exception.
            shared = list(rows)
            log.error("%s failed for %d rows", name, len(shared), exc_info=error)
            for row in shared or self.scheduler.all_rows:
                row.failed_steps += 1
                row.alone |= bool(shared)
                if len(shared) == 1 or row.failed_steps > MOST_FAILED_STEPS:
                    self._end(row, FinishReason.ERROR, error=describe(error))
            self.scheduler.requeue(self.scheduler.clear())

    def _extend(self, row: Row, tokens: list[int]) -> tuple[list[int], FinishReason | None, int | None]:
        """Take sampled tokens, unless the row's own part of the step has failed."""
        if sampling.NO_TOKEN in tokens:
            row.fail(ArithmeticError("the model's logits are not numbers"))
            self._not_numbers = True
        return ([], FinishReason.ERROR, None) if row.failure is not None else row.extend(tokens)

    def _forget_not_numbers(self) -> None:
        """What a NaN was written to would reach later rows through their masks: nothing of it stays."""
        self._not_numbers = False
        self.scheduler.prefixes.fit(0)
        self.scheduler.requeue(self.scheduler.clear())


def agreeing(draft: Sequence[int], sampled: Sequence[int]) -> int:
    """How many leading drafts are the tokens that the target chose itself."""
    for count, (drafted, chosen) in enumerate(zip(draft, sampled, strict=False)):
        if drafted != chosen:
            return count
    return len(draft)


def _flatten(logits: mx.array, depths: Sequence[int]) -> mx.array:
    """The rows' own positions `[sum(depths), vocab]` of ragged logits `[rows, longest, vocab]`."""
    rows, width, vocab = logits.shape
    flat = logits.reshape(rows * width, vocab)
    if all(depth == width for depth in depths):
        return flat
    return flat[mx.array([row * width + at for row, depth in enumerate(depths) for at in range(depth)])]
