"""Verify drafts: one forward over all rows and their drafts, a sample at every position, and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import mlx.core as mx

from parallm_openai.engine import sampling
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.request import TokenLogprob
from parallm_openai.engine.row import TARGET, Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.acceptance import accepted_count, coupled, rejection
from parallm_openai.engine.speculation.drafter import NO_DRAFT, Draft
from parallm_openai.settings import Acceptance


@dataclass(slots=True)
class Verification:
    """One row's draft, and the target's token after the committed ones and after each draft.

    `accepted` counts the leading drafts that are the target's own tokens; with the token after them they are the
    row's next. `logprobs` are those of `next_tokens`, if the row wants them.
    """

    row: Row
    draft: Draft
    sampled: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    accepted: int = 0

    @property
    def depth(self) -> int:
        """How many positions are sampled."""
        return len(self.draft) + 1

    @property
    def next_tokens(self) -> list[int]:
        return self.sampled[: self.accepted + 1]


def verify(target: ModelRunner, batch: Batch, drafts: Sequence[Draft], acceptance: Acceptance) -> list[Verification]:
    """Verify the drafts of a batch's rows in one forward; commits nothing."""
    verifications = [Verification(row, draft) for row, draft in zip(batch.rows, drafts, strict=True)]
    logits = target.forward(batch, Inputs.of([_inputs(each) for each in verifications]))
    _sample(verifications, logits, acceptance)
    return verifications


def first_tokens(rows: Sequence[Row], logits: mx.array) -> list[Verification]:
    """Sample the token after each row's last one from `[len(rows), vocab]` logits; commits nothing."""
    verifications = [Verification(row, NO_DRAFT) for row in rows]
    _sample(verifications, logits, "coupled")
    return verifications


def _inputs(verification: Verification) -> tuple[int, ...]:
    """The row's pending token and its draft."""
    row = verification.row
    return (*row.tokens[row.computed[TARGET].length :], *verification.draft.tokens)


def _sample(verifications: Sequence[Verification], logits: mx.array, acceptance: Acceptance) -> None:
    """Sample all positions of `[positions, vocab]` logits, and count what each row accepts."""
    choose = rejection if acceptance == "rejection" else coupled
    positions = [position for each in verifications for position in each.row.positions(each.draft.tokens)]
    tokens = iter(choose(logits, positions, [each.draft for each in verifications]))
    for each in verifications:
        each.sampled = list(islice(tokens, each.depth))
        each.accepted = accepted_count(each.draft.tokens, each.sampled)
    _score(verifications, logits)


def _score(verifications: Sequence[Verification], logits: mx.array) -> None:
    """Log-probabilities of the accepted tokens for the rows that want them."""
    start = 0
    for each in verifications:
        top, tokens = each.row.request.params.logprobs, each.next_tokens
        own = slice(start, start + len(tokens))
        start += each.depth
        if top is None:
            continue
        try:
            each.logprobs = sampling.token_logprobs(logits[own], tokens, [top] * len(tokens))
        except Exception as error:
            each.row.fail(error)
