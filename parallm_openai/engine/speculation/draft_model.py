"""Drafting with a smaller model of the same tokenizer."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from parallm_openai.engine import sampling
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.position import DRAFT_STREAM, Position
from parallm_openai.engine.row import DRAFT, Row
from parallm_openai.engine.runner import MakeCache, ModelRunner
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.settings import Acceptance

# A row that the draft model has fallen further behind than this, after many steps without drafts, starts
# over with its last few tokens alone: a draft needs no exact context, only a cheap one.
CATCH_UP = 48
RESTART = 24


class DraftModel(Drafter):
    """Drafts with the target's own noise: as far as the two distributions agree, so do their draws.

    If it is `asynchronous`, the host does not wait for a token before the next forward: a GPU then never idles between
    them. On a CPU that gains nothing, and the time that drafting takes would not be known.

    It reads no text beyond its own `context_length`, if it has one: some models look their positions up in a table.

    After a draft that was accepted whole its cache lacks two of the row's tokens, else one; after steps without
    drafts, as many as those steps brought.
    """

    name = "draft_model"

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        target_vocab_size: int,
        ragged: Ragged = Ragged(),
        *,
        context_length: int | None = None,
        asynchronous: bool = False,
        make_cache: MakeCache | None = None,
    ) -> None:
        # A row that starts over must have room for more than its drafts.
        self.context_length = math.inf if context_length is None else max(context_length, RESTART + CATCH_UP)
        self.runner: ModelRunner = ModelRunner(
            model, DRAFT, ragged=ragged, vocab_size=vocab_size, make_cache=make_cache
        )
        self.target_vocab_size = target_vocab_size
        self.asynchronous = asynchronous

    def read_along(self, batch: Batch, rows: Collection[Row], width: int) -> None:
        first = batch.rows[: max(row.slot for row in rows) + 1]
        # All but the last token: the draft begins with that.
        chunks = [
            self._next(row, min(width, self._unread(row) - 1)) if row in rows and self._has_room(row) else []
            for row in first
        ]
        if any(chunks):
            self._read(batch, chunks)

    def _read(self, batch: Batch, chunks: Sequence[Sequence[int]]) -> None:
        """Compute these next tokens of the prompts of the batch's first rows."""
        self.runner.prefill(batch, chunks)

    def propose(
        self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance, copied: Sequence[bool] = ()
    ) -> Drafts:
        if not any(lengths):
            return Drafts.none(len(batch.rows))
        width = max(self._catch_up(row, length) for row, length in zip(batch.rows, lengths, strict=True) if length)
        return self._draft(batch, lengths, width, acceptance)

    def _draft(self, batch: Batch, lengths: Sequence[int], width: int, acceptance: Acceptance) -> Drafts:
        """Draft by forwards: the first reads up to `width` tokens of each row, and each further one the last draft.

        A row that is not drafted for now keeps up in the first, as far as that is wide anyway.
        """
        tokens = [self._next(row, min(width, self._unread(row))) if self._has_room(row) else [] for row in batch.rows]
        inputs = Inputs.of(tokens, [int(length > 0) for length in lengths])
        drawing = Drawing(batch.rows, lengths)
        for depth in range(max(lengths)):
            slots = [slot for slot, length in enumerate(lengths) if length > depth]
            drawn = drawing.draw(self._logits(batch, inputs, depth), slots, acceptance)
            if not self.asynchronous:
                drawing.wait()
            counts = [int(length > depth + 1) for length in lengths]
            inputs = Inputs(drawn[:, None], counts, counts)
        return drawing.drafts()

    def _unread(self, row: Row) -> int:
        """How many tokens it has to read of a row before it can draft for it."""
        return len(row.tokens) - row.computed[DRAFT].end

    def _catch_up(self, row: Row, length: int) -> int:
        """The same for a row that is to get so many drafted tokens: it starts over if that is much, or has no room."""
        draft = row.computed[DRAFT]
        if self._unread(row) > CATCH_UP or not self._has_room(row, length):
            draft.start, draft.length = len(row.tokens) - RESTART, 0
        return self._unread(row)

    def _has_room(self, row: Row, length: int = 0) -> bool:
        """Whether the context has room for a row, from where it begins for this model, and so many drafted tokens."""
        return len(row.tokens) + length - row.computed[DRAFT].start <= self.context_length

    def _next(self, row: Row, count: int) -> list[int]:
        """The next tokens, so many, that it has to read of a row."""
        end = row.computed[DRAFT].end
        return row.tokens[end : end + count]

    def _logits(self, batch: Batch, inputs: Inputs, depth: int) -> mx.array:
        """Logits over the target's vocabulary for the tokens of this depth: the noise of a draw depends on its size."""
        return self._over_target_vocabulary(self.runner.advance(batch, inputs))

    def _over_target_vocabulary(self, logits: mx.array) -> mx.array:
        missing = self.target_vocab_size - logits.shape[-1]
        if missing > 0:
            return mx.pad(logits, [(0, 0), (0, missing)], constant_values=sampling.FORBIDDEN)
        return logits[:, : self.target_vocab_size]


class Drawing:
    """Drafts as they grow: a column of tokens for each depth, on the device."""

    def __init__(self, rows: Sequence[Row], lengths: Sequence[int]) -> None:
        self.rows = rows
        self.lengths = lengths
        self.columns: list[mx.array] = []
        # Those that the host has waited for.
        self.read: list[list[int]] = []
        self.waits = 0
        self.log_q: list[list[mx.array]] = [[] for _ in rows]

    def draw(self, logits: mx.array, slots: Sequence[int], acceptance: Acceptance) -> mx.array:
        """The next token of the rows in these slots, from `[len(slots), vocab]` logits: a column `[rows]`.

        Under coupled acceptance it is drawn just as the target will draw its own.
        """
        positions = [self.rows[slot].position(len(self.columns), self._known(slot)) for slot in slots]
        if acceptance == "rejection":
            positions = [replace(position, stream=DRAFT_STREAM) for position in positions]
            self._record_distributions(logits, slots, positions)
            self.waits += 1
            tokens = mx.maximum(mx.array(sampling.sample(logits, positions)), 0)
        else:
            # A guess may be wrong: it is not worth waiting to know whether it is.
            tokens = sampling.Draw.of(logits, positions).tokens
        if len(slots) < len(self.rows):
            column = mx.zeros((len(self.rows),), dtype=mx.int32)
            column[mx.array(list(slots))] = tokens
            tokens = column
        self.columns.append(tokens)
        return tokens

    def _known(self, slot: int) -> tuple[int, ...]:
        """A row's tokens so far, if what follows depends on them."""
        if not self.rows[slot].reads_drafts:
            return ()
        if len(self.read) < len(self.columns):
            self.wait()
        return tuple(column[slot] for column in self.read)

    def wait(self) -> None:
        """Wait until the device has drawn what has been asked for."""
        self.waits += 1
        self.read += [sampling.as_ids(column) for column in self.columns[len(self.read) :]]

    def _record_distributions(self, logits: mx.array, slots: Sequence[int], positions: Sequence[Position]) -> None:
        """Keep the distributions that the sampled rows draw from; greedy rows draw from none."""
        drawn = [place for place, position in enumerate(positions) if not position.params.greedy]
        if not drawn:
            return
        raw = sampling.log_distribution(logits[mx.array(drawn)], [positions[place] for place in drawn])
        normal = raw - mx.logsumexp(raw, axis=-1, keepdims=True)
        mx.eval(normal)
        for place, log_q in zip(drawn, normal, strict=True):
            self.log_q[slots[place]].append(log_q)

    def drafts(self) -> Drafts:
        return Drafts(self.lengths, mx.stack(self.columns, axis=1), self.log_q, self.waits)
