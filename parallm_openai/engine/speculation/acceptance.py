"""Which of the drafted tokens stand: the two rules.

Coupled (Daliri et al., arXiv 2408.07978): the target draws with the noise that the draft
drew with, and a draft stands while both drew the same. Output does not depend on the draft.

Rejection (Leviathan et al., arXiv 2211.17192): a draft stands with probability
min(1, p/q), else the token comes from the residual max(0, p - q). It accepts more at high
temperature; the tokens, though not their distribution, depend on what was drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from parallm_openai.engine import sampling
from parallm_openai.engine.sampling import ACCEPTANCE_STREAM, Position
from parallm_openai.engine.speculation.drafter import Draft


def coupled(logits: mx.array, positions: Sequence[Position], drafts: Sequence[Draft]) -> list[int]:
    """The target's own token at every position, or `NO_TOKEN`; `logits` is `[len(positions), vocab]`."""
    return sampling.as_ids(sampling.checked(sampling.sample(logits, positions), logits))


def rejection(logits: mx.array, positions: Sequence[Position], drafts: Sequence[Draft]) -> list[int]:
    """At every drafted position the draft if it stands, else a token from the residual, never the draft.

    Positions are those of each draft in turn, one more than it has tokens; greedy rows
    and the last position of each row are drawn as always.
    """
    tokens = coupled(logits, positions, drafts)
    places: list[int] = []
    guesses: list[int] = []
    log_q: list[mx.array] = []
    start = 0
    for draft in drafts:
        for depth, token in enumerate(draft.tokens):
            if not positions[start + depth].params.greedy and tokens[start + depth] != sampling.NO_TOKEN:
                places.append(start + depth)
                guesses.append(token)
                log_q.append(draft.log_q[depth] if draft.log_q else _certain(token, logits.shape[-1]))
        start += len(draft) + 1
    if places:
        judged = _judge(logits[mx.array(places)], [positions[i] for i in places], guesses, mx.stack(log_q))
        for place, token in zip(places, judged, strict=True):
            tokens[place] = token
    return tokens


def _judge(logits: mx.array, positions: Sequence[Position], guesses: Sequence[int], log_q: mx.array) -> list[int]:
    raw = sampling.log_distribution(logits, positions)
    log_p = raw - mx.logsumexp(raw, axis=-1, keepdims=True)
    guess = mx.array(list(guesses))[:, None]
    ratio = mx.take_along_axis(log_p, guess, axis=-1) - mx.take_along_axis(log_q, guess, axis=-1)
    luck = sampling.uniform_noise([replace(p, stream=ACCEPTANCE_STREAM) for p in positions])
    stands = mx.log(luck)[:, None] < ratio
    residual = mx.log(mx.maximum(mx.exp(log_p) - mx.exp(log_q), 0))
    other = mx.argmax(residual + sampling.gumbel_noise(positions, logits.shape[-1]), axis=-1, keepdims=True)
    return sampling.as_ids(mx.where(stands, guess, other)[:, 0])


def _certain(token: int, vocab_size: int) -> mx.array:
    return mx.where(mx.arange(vocab_size) == token, 0.0, sampling.FORBIDDEN)
