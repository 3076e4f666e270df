"""Verify drafts: one forward over all rows and their drafts, a sample at every position, and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import mlx.core as mx

from parallm_openai.engine import sampling
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.request import TokenLogprob
from parallm_openai.engine.row import TARGET, Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.acceptance import accepted_count, coupled, rejection
from parallm_openai.engine.speculation.drafter import Draft
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
    logits = target.forward(batch, [_inputs(each) for each in verifications])
    flat = _own_positions(logits, [each.depth for each in verifications])
    choose = rejection if acceptance == "rejection" else coupled
    positions = [position for each in verifications for position in each.row.positions(each.draft.tokens)]
    tokens = iter(choose(flat, positions, drafts))
    for each in verifications:
        each.sampled = list(islice(tokens, each.depth))
        each.accepted = accepted_count(each.draft.tokens, each.sampled)
    _score(verifications, flat)
    return verifications


def _inputs(verification: Verification) -> tuple[int, ...]:
    """The row's pending token and its draft."""
    row = verification.row
    return (*row.tokens[row.computed[TARGET].length :], *verification.draft.tokens)


def _own_positions(logits: mx.array, depths: Sequence[int]) -> mx.array:
    """The rows' own positions `[sum(depths), vocab]` of padded logits `[rows, longest, vocab]`."""
    rows, width, vocab = logits.shape
    flat = logits.reshape(rows * width, vocab)
    if all(depth == width for depth in depths):
        return flat
    return flat[mx.array([row * width + at for row, depth in enumerate(depths) for at in range(depth)])]


def _score(verifications: Sequence[Verification], flat: mx.array) -> None:
    """Log-probabilities of the accepted tokens for the rows that want them; `flat` is `[positions, vocab]`."""
    start = 0
    for each in verifications:
        top, tokens = each.row.request.params.logprobs, each.next_tokens
        own = slice(start, start + len(tokens))
        start += each.depth
        if top is None:
            continue
        try:
            each.logprobs = sampling.token_logprobs(flat[own], tokens, [top] * len(tokens))
        except Exception as error:
            each.row.fail(error)
