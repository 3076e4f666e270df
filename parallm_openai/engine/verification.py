"""Verify drafts: one forward over all rows and their drafts, a sample at every position, and what is accepted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import mlx.core as mx

from parallm_openai.engine import sampling
from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.position import Position
from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.engine.row import DRAFT, TARGET, Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.acceptance import accepted_count, coupled, rejection
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.settings import Acceptance


@dataclass(slots=True)
class Verification:
    """One row's draft, and the target's token after the committed ones and after each draft.

    `accepted` counts the leading drafts that are the target's own tokens; with the token after them they are the
    row's next. `logprobs` are those of `next_tokens`, if the row wants them.
    """

    row: Row
    draft: tuple[int, ...]
    sampled: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    accepted: int = field(init=False)

    def __post_init__(self) -> None:
        self.accepted = accepted_count(self.draft, self.sampled)

    @property
    def depth(self) -> int:
        """How many positions are sampled."""
        return len(self.draft) + 1

    @property
    def next_tokens(self) -> list[int]:
        return self.sampled[: self.accepted + 1]


def verify(target: ModelRunner, batch: Batch, drafts: Drafts, acceptance: Acceptance) -> list[Verification]:
    """Verify the drafts of a batch's rows in one forward; commits nothing."""
    logits = target.forward(batch, _inputs(batch.rows, drafts))
    return _verified(batch.rows, drafts, logits, acceptance)


def first_tokens(rows: Sequence[Row], logits: mx.array) -> list[Verification]:
    """Sample the token after each row's last one from `[len(rows), vocab]` logits; commits nothing."""
    return _verified(rows, Drafts.none(len(rows)), logits, "coupled")


def _inputs(rows: Sequence[Row], drafts: Drafts) -> Inputs:
    """The rows' pending tokens, each followed by its draft."""
    pending = [row.uncomputed_tokens for row in rows]
    if drafts.ids is None:
        return Inputs.of([(*own, *draft) for own, draft in zip(pending, drafts.tokens, strict=True)])
    counts = [1 + length for length in drafts.lengths]
    return Inputs(mx.concatenate([mx.array(pending, dtype=mx.int32), drafts.ids], axis=1), counts, counts)


def _verified(rows: Sequence[Row], drafts: Drafts, logits: mx.array, acceptance: Acceptance) -> list[Verification]:
    """Sample all positions of `[positions, vocab]` logits, and count what each row accepts."""
    positions = [position for slot, row in enumerate(rows) for position in _positions(row, slot, drafts)]
    tokens = iter((rejection if acceptance == "rejection" else coupled)(logits, positions, drafts))
    verifications = [
        Verification(row, draft, list(islice(tokens, len(draft) + 1)))
        for row, draft in zip(rows, drafts.tokens, strict=True)
    ]
    _score(verifications, logits)
    return verifications


def _positions(row: Row, slot: int, drafts: Drafts) -> list[Position]:
    """The places that a row's verification samples: after the committed tokens and after each draft."""
    draft = drafts.tokens[slot] if row.reads_drafts else ()
    return [row.position(depth, draft[:depth]) for depth in range(drafts.lengths[slot] + 1)]


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


def commit(verified: Verification) -> tuple[Output, FinishReason | None]:
    """Append what was accepted, up to the end of the row if it ends there; what to report, and why it has ended."""
    row, before = verified.row, len(verified.row.tokens)
    appended, reason, stop_token = _extend(row, verified.next_tokens)
    # All that it had was computed, together with the drafts that were accepted; its newest token is pending now.
    row.computed[TARGET].length = max(before, len(row.tokens) - 1)
    # A draft model has read ahead. Once the target goes on, a rejected token could not be told from an accepted one.
    row.computed[DRAFT].length = row.certain(DRAFT)
    admitted_at = row.admitted_at if row.first_token_at is None else None
    if row.first_token_at is None:
        row.first_token_at = time.perf_counter()
    cached, row.cached_prompt_tokens = row.cached_prompt_tokens, 0
    output = Output(
        row.id,
        tokens=tuple(appended),
        logprobs=tuple(verified.logprobs[: len(appended) + (stop_token is not None)]),
        stop_token=stop_token,
        drafted=len(verified.draft),
        accepted=min(verified.accepted, len(appended)),
        cached_prompt_tokens=cached,
        admitted_at=admitted_at,
    )
    return output, reason


def _extend(row: Row, tokens: list[int]) -> tuple[list[int], FinishReason | None, int | None]:
    """Append sampled tokens, unless the row's own part of the step has failed."""
    if sampling.NO_TOKEN in tokens:
        row.fail(ArithmeticError("the model's logits are not numbers"))
    return ([], FinishReason.ERROR, None) if row.failure is not None else row.extend(tokens)


def score_prompt(row: Row, logits: mx.array) -> list[TokenLogprob]:
    """Log-probabilities of what follows the newest tokens of a prompt, whose logits `[tokens, vocab]` are given."""
    start = row.computed[TARGET].length - logits.shape[0]
    following = row.tokens[start + 1 : start + 1 + logits.shape[0]]
    tops = [row.request.params.prompt_logprobs or 0] * len(following)
    return sampling.token_logprobs(logits[: len(following)], following, tops) if following else []
