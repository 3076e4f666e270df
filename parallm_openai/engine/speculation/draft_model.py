"""Drafting with a smaller model of the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import mlx.nn as nn

from parallm_openai.engine import sampling
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.position import DRAFT_STREAM, Position
from parallm_openai.engine.row import DRAFT, TARGET, Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.drafter import NO_DRAFT, Draft, Drafter
from parallm_openai.settings import Acceptance

# A row that the draft model has fallen further behind than this, after many steps without drafts, starts
# over with its last few tokens alone: a draft needs no exact context, only a cheap one.
CATCH_UP = 48
RESTART = 24


@dataclass(slots=True)
class _Guess:
    """A row's draft as it grows, and the tokens that the draft model reads next for it."""

    row: Row
    length: int
    reading: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    log_q: list[mx.array] = field(default_factory=list)

    @property
    def unfinished(self) -> bool:
        return len(self.tokens) < self.length

    def position(self) -> Position:
        return self.row.position(tuple(self.tokens))

    def draft(self) -> Draft:
        return Draft(tuple(self.tokens), tuple(self.log_q))


class DraftModel(Drafter):
    """Drafts with the target's own noise: as far as the two distributions agree, so do their draws.

    After a draft that was accepted whole its cache lacks two of the row's tokens, else one; after steps without
    drafts, as many as those steps brought.
    """

    name = "draft_model"

    def __init__(self, model: nn.Module, vocab_size: int, target_vocab_size: int, mask_axes: int = 4) -> None:
        self.runner: ModelRunner = ModelRunner(model, DRAFT, mask_axes=mask_axes, vocab_size=vocab_size)
        self.target_vocab_size = target_vocab_size

    def propose(self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance) -> list[Draft]:
        for row in batch.rows:
            _forget_rejected(row)
        drafted = [row for row, length in zip(batch.rows, lengths, strict=True) if length]
        if not drafted:
            return [NO_DRAFT] * len(batch.rows)
        # A row that is not drafted for now keeps up in the same forward, as far as that is wide anyway.
        width = max(map(_catch_up, drafted))
        guesses = [_Guess(row, length, _next(row, width)) for row, length in zip(batch.rows, lengths, strict=True)]
        while any(guess.reading for guess in guesses):
            unfinished = [guess for guess in guesses if guess.unfinished]
            wanted = [int(guess.unfinished) for guess in guesses]
            logits = self.runner.advance(batch, Inputs.of([guess.reading for guess in guesses], wanted))
            self._extend(unfinished, self._over_target_vocabulary(logits), acceptance)
            for guess in guesses:
                guess.reading = guess.tokens[-1:] if guess.unfinished else ()
        return [guess.draft() for guess in guesses]

    def _extend(self, guesses: Sequence[_Guess], logits: mx.array, acceptance: Acceptance) -> None:
        """Draw each draft's next token; under coupled acceptance, just as the target will draw its own."""
        positions = [guess.position() for guess in guesses]
        if acceptance == "rejection":
            positions = [replace(position, stream=DRAFT_STREAM) for position in positions]
            self._record_distributions(guesses, logits, positions)
        for guess, token in zip(guesses, sampling.as_ids(sampling.sample(logits, positions)), strict=True):
            guess.tokens.append(token)

    def _record_distributions(self, guesses: Sequence[_Guess], logits: mx.array, positions: Sequence[Position]) -> None:
        """Keep the distributions that the sampled rows draw from; greedy rows draw from none."""
        drawn = [place for place, position in enumerate(positions) if not position.params.greedy]
        if not drawn:
            return
        raw = sampling.log_distribution(logits[mx.array(drawn)], [positions[place] for place in drawn])
        normal = raw - mx.logsumexp(raw, axis=-1, keepdims=True)
        mx.eval(normal)
        for place, log_q in zip(drawn, normal, strict=True):
            guesses[place].log_q.append(log_q)

    def _over_target_vocabulary(self, logits: mx.array) -> mx.array:
        """The draft's logits over the target's vocabulary: the noise of a draw depends on its size."""
        missing = self.target_vocab_size - logits.shape[-1]
        if missing > 0:
            return mx.pad(logits, [(0, 0), (0, missing)], constant_values=sampling.FORBIDDEN)
        return logits[:, : self.target_vocab_size]


def _forget_rejected(row: Row) -> None:
    """Roll the draft model back to what the target has committed.

    In every step: once the target has gone on, a rejected token could not be told from an accepted one.
    """
    draft = row.computed[DRAFT]
    draft.length = max(0, min(draft.length, row.computed[TARGET].length - draft.start))


def _catch_up(row: Row) -> int:
    """How many tokens the draft model has to read before it can draft for a row, which starts over if that is many."""
    draft = row.computed[DRAFT]
    if len(row.tokens) - draft.end > CATCH_UP:
        draft.start, draft.length = len(row.tokens) - RESTART, 0
    return len(row.tokens) - draft.end


def _next(row: Row, count: int) -> list[int]:
    """The next tokens, up to `count`, that the draft model has to read of a row."""
    end = row.computed[DRAFT].end
    return row.tokens[end : end + count]
