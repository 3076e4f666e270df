"""Decides what each step does: who is preempted, admitted, prefilled and moved, and how far to draft.

First come, first served, within the configured rows and tokens. Imports no MLX.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallm_openai.engine.batch import Bucket, padded_tokens
from parallm_openai.engine.cache.blocks import BLOCK_TOKENS, BlockIndex
from parallm_openai.engine.cache.prefix import SHORTEST_PREFIX, Match, PrefixCache, fits, full_blocks
from parallm_openai.engine.occupancy import Occupancy
from parallm_openai.engine.plan import Admission, Decode, Plan, PromptForward
from parallm_openai.engine.prefill_speed import PrefillSpeed
from parallm_openai.engine.prompt_widths import first_width
from parallm_openai.engine.row import Row
from parallm_openai.engine.speculation.draft_length import Choice
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.settings import EngineConfig

# Tokens that each row may grow by before admission would have been wrong.
HEADROOM = 64
# A prompt longer than this prefills apart from shorter ones.
LONG_PROMPT = 1024


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What scheduling needs to know of a model on this machine.

    `ragged` says whether rows may be padded and rolled back. `padding_limit` is how many tokens of padding cost a
    decode step's attention as much as one more forward does, `forward_tokens` how many more tokens cost a prefill as
    much, `prefill_tokens` how many prompt tokens a forward reads efficiently. `fast_width` is the most tokens a row
    that one forward computes cheaply, if kernels have such a bound: longer drafts are then made only if their length
    is fixed. `runs_ahead` says whether plain steps are sent off before the host has seen the tokens of the last,
    `recurrent` that a stored prefix can be used up to certain lengths only. `token_bytes` is what a token of context
    takes in the cache, `state_bytes` what a row's recurrent states take, 0 if that is not known.
    """

    ragged: bool
    padding_limit: int
    forward_tokens: int
    prefill_tokens: int
    fast_width: int | None = None
    runs_ahead: bool = False
    recurrent: bool = False
    token_bytes: int = 0
    state_bytes: int = 0

    def __post_init__(self) -> None:
        if self.runs_ahead and not self.ragged:
            raise ValueError("a step sent off ahead may have to be taken back, which only a ragged cache can do")


class Scheduler:
    """Plans steps for rows in two buckets: `common` for all, `long` for those too long to share its forwards."""

    def __init__(self, common: Bucket, long: Bucket, drafter: Drafter, traits: ModelTraits) -> None:
        self.common, self.long = common, long
        self.drafter = drafter
        self.traits = traits
        # Whether stored prefixes can be used up to certain lengths only, by the target or by the draft model.
        self.recurrent = traits.recurrent or drafter.recurrent
        self.waiting: deque[Row] = deque()
        self.prefixes = PrefixCache()
        self.prefill_speed = PrefillSpeed(traits.forward_tokens)
        # How long the last decode step took.
        self.decode_seconds = 0.0

    @property
    def buckets(self) -> tuple[Bucket, Bucket]:
        return self.common, self.long

    @property
    def prefilling(self) -> list[Row]:
        return self.common.prefilling.rows + self.long.prefilling.rows

    @property
    def decoding(self) -> list[Row]:
        return self.common.decoding.rows + self.long.decoding.rows

    @property
    def can_draft(self) -> bool:
        return self.drafter.name != Drafter.name and self.traits.ragged

    def requeue(self, rows: Sequence[Row]) -> None:
        """Rows that have left their batches wait at the head of the queue, in order of arrival.

        Nothing is lost: a row's next token depends on its tokens and its seed alone. Suspects come first: each is
        admitted alone.
        """
        for row in rows:
            row.prompt_logprobs = []
            row.cleared = False
        waiting = [*sorted(rows, key=lambda row: row.arrived), *self.waiting]
        self.waiting = deque(sorted((row for row in waiting if not row.ended), key=lambda row: not row.suspect))

    def plan(self, config: EngineConfig) -> Plan:
        """The next step. Changes nothing but the estimators of the draft length."""
        occupancy = Occupancy(self.buckets)
        preempt = self._preemptions(occupancy, config)
        # Those preempted come first in the queue, and what they have computed is not stored yet.
        admit = () if preempt else self._admissions(occupancy, config)
        prefill = self._prefill(occupancy, config)
        moves = self._moves(occupancy)
        decode = self._decode(occupancy, config)
        return Plan(config, preempt, admit, prefill, moves, decode)

    # Preemption and admission

    def _preemptions(self, occupancy: Occupancy, config: EngineConfig) -> tuple[Row, ...]:
        """Decoding rows that must go back to the queue, since the rows have outgrown the token budget.

        So must a row that has proved its innocence alone while other suspects have still to.
        """
        preempted: list[Row] = []
        if any(row.suspect for row in self.waiting):
            preempted = [row for row in self.decoding if row.cleared]
        for row in preempted:
            occupancy.remove(row)
        while occupancy.count > 1 and occupancy.padded_tokens > config.max_batch_tokens:
            busy = [bucket for bucket in self.buckets if occupancy.decoding[bucket]]
            if not busy:
                break
            largest = max(busy, key=lambda bucket: padded_tokens(occupancy.decoding[bucket]))
            newest = max(occupancy.decoding[largest], key=lambda row: row.arrived)
            occupancy.remove(newest)
            preempted.append(newest)
        return tuple(preempted)

    def _admissions(self, occupancy: Occupancy, config: EngineConfig) -> tuple[Admission, ...]:
        """Waiting rows that fit, in order; a row passes its turn while another one computes most of its prompt."""
        if not self.waiting or occupancy.count >= config.max_batch_size:
            return ()
        admissions: list[Admission] = []
        in_progress = self._prefixes_in_progress(occupancy, config)
        for row in self.waiting:
            if self._should_wait(row, in_progress, occupancy):
                continue
            if not self._fits(row, occupancy, config):
                break
            admission = self._admission(row, config)
            admissions.append(admission)
            occupancy.admit(admission)
            self._add_in_progress(row, in_progress, config)
        return tuple(admissions)

    def _fits(self, row: Row, occupancy: Occupancy, config: EngineConfig) -> bool:
        if occupancy.count and (row.suspect or any(other.suspect for other in occupancy.rows)):
            return False
        rows = occupancy.count + 1
        tokens = occupancy.padded_tokens + len(row.tokens) + rows * HEADROOM
        # A lone request always fits.
        return rows <= config.max_batch_size and (rows == 1 or tokens <= config.max_batch_tokens)

    def _admission(self, row: Row, config: EngineConfig) -> Admission:
        bucket = self.long if len(row.tokens) > LONG_PROMPT else self.common
        if row.scores_prompt:
            return Admission(row, bucket)
        found = self.prefixes.match(row.tokens[:-1], row.blocks)
        return Admission(row, bucket, found.prefix, found.length, self._keep_at(row, found, config))

    def _keep_at(self, row: Row, found: Match, config: EngineConfig) -> tuple[int, ...]:
        """The lengths at which a row keeps its recurrent states for others that begin like it.

        They are the end of what it has in common with a stored sequence, as others are likely to have that too, and of
        its prompt, but for a block's rest: the same prompt has to read a token, and a chat's next turn begins like it.
        """
        if not self.recurrent or not config.prefix_cache_tokens:
            return ()
        ends = {length // BLOCK_TOKENS * BLOCK_TOKENS for length in (found.common, len(row.tokens) - 1)}
        return tuple(sorted(end for end in ends if end > max(found.length, SHORTEST_PREFIX - 1)))

    def _prefixes_in_progress(self, occupancy: Occupancy, config: EngineConfig) -> BlockIndex[Row]:
        """The prompts that rows are computing now, and will store."""
        index: BlockIndex[Row] = BlockIndex()
        for bucket in self.buckets:
            for row in occupancy.prefilling[bucket]:
                self._add_in_progress(row, index, config)
        return index

    def _add_in_progress(self, row: Row, index: BlockIndex[Row], config: EngineConfig) -> None:
        prompt = row.tokens[:-1]
        if self.traits.ragged and fits(prompt, config.prefix_cache_tokens):
            index.add(row, full_blocks(row.blocks, prompt))

    def _should_wait(self, row: Row, in_progress: BlockIndex[Row], occupancy: Occupancy) -> bool:
        """Whether another row is computing more than half of what this one would have to."""
        if row.scores_prompt:
            return False
        hashes = full_blocks(row.blocks, row.tokens)
        depth = in_progress.depth(hashes)
        if not depth:
            return False
        soon = BLOCK_TOKENS * depth
        if self.recurrent:
            kept = [at for other in in_progress.items(hashes[depth - 1]) for at in occupancy.keep_at[other]]
            soon = max((at for at in kept if at <= soon), default=0)
        stored = self.prefixes.match(row.tokens[:-1], row.blocks).length
        return soon - stored > (len(row.tokens) - stored) / 2

    # Prefill

    def _prefill(self, occupancy: Occupancy, config: EngineConfig) -> tuple[PromptForward, ...]:
        busy = [bucket for bucket in self.buckets if occupancy.prefilling[bucket]]
        # Before any row is through: its own decoding is not held up.
        held_up = any(occupancy.decoding.values())
        chunks = {bucket: self._chunk(occupancy.prefilling[bucket], held_up, config) // len(busy) for bucket in busy}
        return tuple(
            forward for bucket in busy for forward in self._forwards(bucket, occupancy, chunks[bucket], config)
        )

    def _chunk(self, rows: Sequence[Row], held_up: bool, config: EngineConfig) -> int:
        """How many prompt tokens of these rows a step may read, perhaps while others wait to decode."""
        most = self.traits.prefill_tokens if config.prefill_chunk == "auto" else config.prefill_chunk
        if not held_up:
            return most
        context = max(len(row.tokens) - row.unread for row in rows)
        # Where decoding is slow, reading gets as long: otherwise new requests would starve.
        seconds = max(config.max_prefill_ms / 1000, self.decode_seconds)
        return min(most, self.prefill_speed.tokens_within(seconds, context))

    def _forwards(
        self, bucket: Bucket, occupancy: Occupancy, chunk: int, config: EngineConfig
    ) -> Iterator[PromptForward]:
        """A bucket's forwards over `chunk` prompt tokens, shared equally among its rows.

        So a short prompt is through in a step or two however long its neighbours are, and decoding rows never wait
        for more than one chunk. Shorter prompts are computed first, in a forward of their own, if padding them to the
        longest would cost more than that forward.
        """
        drafting, exploring = self._drafting(bucket, occupancy, config)
        share = max(1, chunk // max(1, len(occupancy.prefilling[bucket])))
        while share and (rows := occupancy.prefilling[bucket]):
            width = self._width(rows, share, occupancy)
            for row in rows:
                occupancy.unread[row] = max(0, occupancy.unread[row] - width)
            reading = drafting.intersection(rows)
            yield PromptForward(bucket, width, self._through(bucket, occupancy), reading, exploring)
            share -= width

    def _width(self, rows: Sequence[Row], share: int, occupancy: Occupancy) -> int:
        """How many tokens of each of these rows the next forward reads at most."""
        wanted = [min(share, occupancy.unread[row]) for row in rows]
        width = first_width(wanted, self.traits.forward_tokens) if self.traits.ragged else max(wanted)
        return min(width, *(occupancy.until_kept(row) for row in rows)) if self.recurrent else width

    def _through(self, bucket: Bucket, occupancy: Occupancy) -> dict[Row, Bucket]:
        """The rows whose prompts are computed, and where they decode."""
        through = {}
        for row in [row for row in occupancy.prefilling[bucket] if not occupancy.unread[row]]:
            through[row] = self._bucket_for(row, occupancy)
            occupancy.start_decoding(row, bucket, through[row])
        return through

    def _bucket_for(self, row: Row, occupancy: Occupancy) -> Bucket:
        """Where a row that has computed its prompt decodes: with the others, unless that takes too much padding."""
        if occupancy.padding(self.common, row) <= self.traits.padding_limit:
            return self.common
        longest = max((len(other.tokens) for other in occupancy.decoding[self.common]), default=0)
        return self.long if len(row.tokens) > longest else self.common

    def _drafting(self, bucket: Bucket, occupancy: Occupancy, config: EngineConfig) -> tuple[frozenset[Row], bool]:
        """The prefilling rows for which the draft model reads along, and whether only to explore.

        It reads along if drafts are likely to pay, and now and then to see whether they would.
        """
        rows = [row for row in occupancy.prefilling[bucket] if self._wants_drafts(row, config)]
        if not rows or self.drafter.runner is None:
            return frozenset(), False
        together = [*occupancy.prefilling[bucket], *occupancy.decoding[bucket]]
        context = max(len(row.tokens) for row in together)
        if config.draft_length != "auto" or bucket.draft_length.expects_drafts(
            len(together), context, self._longest_draft(config)
        ):
            return frozenset(rows), False
        return frozenset(bucket.draft_length.explore_prefill(rows)), True

    # Decoding

    def _moves(self, occupancy: Occupancy) -> tuple[tuple[Row, Bucket], ...]:
        """The longest rows leave the common bucket while their padding costs more than a forward."""
        moves: list[tuple[Row, Bucket]] = []
        rows = occupancy.decoding[self.common]
        while self.traits.ragged and len(rows) > 1 and occupancy.padding(self.common) > self.traits.padding_limit:
            longest = max(rows, key=lambda row: len(row.tokens))
            rows.remove(longest)
            occupancy.decoding[self.long].append(longest)
            moves.append((longest, self.long))
        return tuple(moves)

    def _decode(self, occupancy: Occupancy, config: EngineConfig) -> tuple[Decode, ...]:
        busy = [bucket for bucket in self.buckets if occupancy.decoding[bucket]]
        decode = []
        for bucket in busy:
            rows = occupancy.decoding[bucket]
            chosen = self._draft_lengths(bucket, rows, config)
            ahead = self.traits.runs_ahead and not any(chosen.lengths) and all(row.may_run_ahead for row in rows)
            copied = frozenset(row for row, copies in zip(rows, chosen.copied, strict=True) if copies)
            decode.append(Decode(bucket, dict(zip(rows, chosen.lengths, strict=True)), copied, ahead))
        return tuple(decode)

    def _draft_lengths(self, bucket: Bucket, rows: Sequence[Row], config: EngineConfig) -> Choice:
        limits = [self._draft_limit(row, config) for row in rows]
        fixed = None if config.draft_length == "auto" else config.draft_length
        context = max(len(row.tokens) for row in rows) - 1
        copied = [self.drafter.chances(row, limit) for row, limit in zip(rows, limits, strict=True)]
        return bucket.draft_length.choose(rows, limits, context, fixed, copied, self.drafter.computes)

    def _draft_limit(self, row: Row, config: EngineConfig) -> int:
        """How many tokens can be drafted for a row: the last one that it may still generate needs no draft."""
        if not self._wants_drafts(row, config):
            return 0
        return self.drafter.available(row, min(self._longest_draft(config), row.remaining - 1))

    def _longest_draft(self, config: EngineConfig) -> int:
        if self.traits.fast_width is None or config.draft_length != "auto":
            return config.max_draft_tokens
        return min(config.max_draft_tokens, self.traits.fast_width - 1)

    def _wants_drafts(self, row: Row, config: EngineConfig) -> bool:
        if not self.can_draft:
            return False
        wanted = row.request.params.use_speculative
        return config.use_speculative_decoding if wanted is None else wanted
