"""Who waits, who is admitted, what is kept of those that leave, and how a step's prefill is shared. No arrays here."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from parallm_openai.config import EngineConfig
from parallm_openai.engine.lane import Lane
from parallm_openai.engine.prefix_cache import Prefix, PrefixCache, common_beginning
from parallm_openai.engine.row import Row, describe

log = logging.getLogger(__name__)

# Tokens that each row may grow by before admission would have been wrong.
HEADROOM = 64
# A prompt longer than this prefills apart from shorter ones.
LONG_PROMPT = 1024


class Scheduler:
    """First come, first served, within `max_batch_size` rows and `max_batch_tokens` of cache.

    Rows live in two lanes: the first for all of them, the second for those that are too
    long to share the others' forwards. `waste_limit` is how many tokens of padding cost a
    decode step's attention as much as one more forward does, `forward_tokens` how many tokens more
    cost a prefill as much.
    """

    def __init__(self, lanes: Sequence[Lane], waste_limit: int, forward_tokens: int) -> None:
        self.common, self.long = lanes
        self.waste_limit = waste_limit
        self.forward_tokens = forward_tokens
        self.waiting: deque[Row] = deque()
        self.prefixes = PrefixCache()

    @property
    def lanes(self) -> tuple[Lane, Lane]:
        return self.common, self.long

    @property
    def prefilling(self) -> list[Row]:
        return self.common.prefilling + self.long.prefilling

    @property
    def running(self) -> list[Row]:
        return self.common.running + self.long.running

    @property
    def active(self) -> int:
        return sum(len(lane.prefilling) + len(lane.running) for lane in self.lanes)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.active)

    def admit(self, config: EngineConfig) -> list[tuple[Row, BaseException]]:
        """Move waiting rows that fit into prefill, in order; one whose prompt is being read already waits for that.

        Returns the rows for which this failed, for want of memory as a rule, with the reasons: they are nowhere now.
        """
        failed: list[tuple[Row, BaseException]] = []
        for row in list(self.waiting):
            if self._being_read(row, config):
                continue
            if not self._fits(row, config):
                break
            self.waiting.remove(row)
            lane = self.long if len(row.tokens) > LONG_PROMPT else self.common
            try:
                lane.admit(row, *self._known(row))
            except BaseException as error:
                # The caches may hold a part of the row: those that shared them begin again.
                self.requeue(lane.clear_prefilling())
                failed.append((row, error))
        return failed

    def _known(self, row: Row) -> tuple[Prefix | None, int]:
        """A kept sequence that begins as the row does, and how far; none where every token is to be scored."""
        if row.scores_prompt:
            return None, 0
        prefix, length = self.prefixes.find(row.tokens, row.request.cache_salt)
        if not row.generated:
            row.cached = length
        return prefix, length

    def _being_read(self, row: Row, config: EngineConfig) -> bool:
        """Whether another row is reading, and will leave to be copied, more than half of what this one has to read."""
        if row.scores_prompt or not self.common.target.ragged:
            return False
        salt = row.request.cache_salt
        for other in self.prefilling:
            if other.request.cache_salt != salt:
                continue
            beginning = common_beginning(row.tokens, other.tokens[:-1])
            if beginning and self.prefixes.has_room(other.tokens, config.prefix_cache_tokens):
                known = self.prefixes.known(row.tokens, salt)
                return beginning - known > (len(row.tokens) - known) / 2
        return False

    def remember(self, lane: Lane, index: int, config: EngineConfig) -> None:
        """Keep what a decoding row has read, for requests that begin alike."""
        salt = lane.running[index].request.cache_salt
        if not self.prefixes.wants(lane.read(index), config.prefix_cache_tokens, salt):
            return
        try:
            prefix = lane.copy(index)
        except Exception as error:
            # The rows that run need the memory more.
            log.warning("a sequence could not be kept (%s); those kept are forgotten", describe(error))
            self.prefixes.fit(0)
            return
        if prefix is not None:
            self.prefixes.keep(prefix, config.prefix_cache_tokens)

    def retire(self, lane: Lane, index: int, config: EngineConfig) -> Row:
        """A decoding row leaves."""
        self.remember(lane, index, config)
        return lane.drop_running(index)

    def _fits(self, row: Row, config: EngineConfig) -> bool:
        active = [*self.prefilling, *self.running]
        if active and (row.alone or any(other.alone for other in active)):
            return False
        rows = len(active) + 1
        area = sum(lane.area for lane in self.lanes) + len(row.tokens) + rows * HEADROOM
        # A lone request always fits.
        return rows <= config.max_batch_size and (rows == 1 or area <= config.max_batch_tokens)

    def overflowing(self, config: EngineConfig) -> Lane | None:
        """A lane whose newest row must go back to the queue, since the rows have outgrown the token budget."""
        if self.active < 2 or sum(lane.area for lane in self.lanes) <= config.max_batch_tokens:
            return None
        return max((lane for lane in self.lanes if lane.running), key=lambda lane: lane.area, default=None)

    def requeue_newest(self, lane: Lane, config: EngineConfig) -> None:
        """A decoding row goes back to the queue, to be prefilled again with what it has."""
        newest = max(range(len(lane.running)), key=lambda index: lane.running[index].arrived)
        self.requeue([self.retire(lane, newest, config)])

    @property
    def all_rows(self) -> list[Row]:
        return [*self.prefilling, *self.running, *self.waiting]

    def requeue(self, rows: Sequence[Row]) -> None:
        """Rows that have left their caches are served next, in order of arrival; those that have ended leave the queue.

        Nothing is lost: a row's next token depends on its tokens and its seed alone. Rows under suspicion come first:
        each is admitted alone.
        """
        for row in rows:
            row.prompt_logprobs = []
        waiting = [*sorted(rows, key=lambda row: row.arrived), *self.waiting]
        self.waiting = deque(sorted((row for row in waiting if not row.ended), key=lambda row: not row.alone))

    def park_cleared(self) -> None:
        """A row that has come through a step alone makes way while others have still to."""
        cleared = any(row.cleared for row in self.running)
        if cleared and any(row.alone for row in self.waiting):
            self.requeue(self.clear())
        if cleared:
            for row in self.all_rows:
                row.cleared = False

    def clear(self) -> list[Row]:
        """Drop all rows that have been admitted, and whatever state the caches are in."""
        return [row for lane in self.lanes for row in (*lane.clear_prefilling(), *lane.clear_running())]

    def prefill_share(self, lane: Lane, config: EngineConfig) -> int:
        """Prompt tokens that each of a lane's prefilling rows may read in this step.

        An equal share of `prefill_chunk`: a short prompt is through in a step or two however
        long its neighbours are, and decoding rows never wait for more than one chunk.
        """
        lanes = sum(bool(each.prefilling) for each in self.lanes)
        return max(1, config.prefill_chunk // (lanes * len(lane.prefilling)))

    def prefill_width(self, lane: Lane, unread: Sequence[int], share: int) -> int:
        """How many of its `share` of tokens each prefilling row reads in the next forward.

        Shorter prompts are read to their end first where padding them to the longest would cost more
        than the forwards that this takes.
        """
        wanted = [min(share, tokens) for tokens in unread]
        if not lane.target.ragged:
            return max(wanted)
        return first_width(wanted, self.forward_tokens)

    def lane_for(self, row: Row) -> Lane:
        """Where a row that has read its prompt decodes: with the others, unless that wastes too much."""
        return self.common if self.common.waste(row) <= self.waste_limit else self._lane_apart(row)

    def _lane_apart(self, row: Row) -> Lane:
        longest = max((len(other.tokens) for other in self.common.running), default=0)
        return self.long if len(row.tokens) > longest else self.common

    def rebalance(self) -> None:
        """Move the longest rows out of the common lane while their padding costs more than a forward."""
        if not self.common.target.ragged:
            return
        while len(self.common.running) > 1 and self.common.waste() > self.waste_limit:
            lengths = [len(row.tokens) for row in self.common.running]
            self.long.move(self.common, lengths.index(max(lengths)))


def first_width(lengths: Sequence[int], forward_tokens: int) -> int:
    """The width of the first of those forwards that read all rows at the least cost.

    A forward costs its rectangle and `forward_tokens` more; a row that is through leaves it.
    """
    cuts = sorted({0, *lengths})
    cost = {cuts[-1]: 0}
    width = 0
    for place in range(len(cuts) - 2, -1, -1):
        start = cuts[place]
        rows = sum(length > start for length in lengths)
        costs = {end: forward_tokens + rows * (end - start) + cost[end] for end in cuts[place + 1 :]}
        best = min(costs, key=lambda end: (costs[end], -end))
        cost[start], width = costs[best], best - start
    return width
