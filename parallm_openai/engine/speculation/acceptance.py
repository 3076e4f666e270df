"""Which drafted tokens are accepted: the two rules.

Coupled (Daliri et al., arXiv 2408.07978): the target draws with the noise that the draft
drew with, and accepts a draft while both drew the same. The output does not depend on the draft.

Rejection (Leviathan et al., arXiv 2211.17192): the target accepts a draft with probability
min(1, p/q), else the token comes from the residual max(0, p - q). It accepts more at high
temperature; the tokens, though not their distribution, depend on the drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from parallm_openai.engine import sampling
from parallm_openai.engine.position import ACCEPTANCE_STREAM, Position
from parallm_openai.engine.speculation.drafts import Drafts


def coupled(logits: mx.array, positions: Sequence[Position], drafts: Drafts) -> list[int]:
    """The target's own token at every position, or `NO_TOKEN`; `logits` is `[len(positions), vocab]`."""
    return sampling.sample(logits, positions)


def rejection(logits: mx.array, positions: Sequence[Position], drafts: Drafts) -> list[int]:
    """At every drafted position the draft if it is accepted, else a token from the residual, never the draft.

    Positions are those of each draft in turn, one more than it has tokens; greedy rows
    and the last position of each row are drawn as always.
    """
    tokens = coupled(logits, positions, drafts)
    # By position: the drafted token, and the logarithms of the distribution that it was drawn from.
    drawn: dict[int, tuple[int, mx.array]] = {}
    start = 0
    for row, draft in enumerate(drafts.tokens):
        log_q = drafts.log_q[row] if drafts.log_q else ()
        for depth, token in enumerate(draft):
            place = start + depth
            if not positions[place].params.greedy and tokens[place] != sampling.NO_TOKEN:
                drawn[place] = token, log_q[depth] if log_q else _certain(token, logits.shape[-1])
        start += len(draft) + 1
    if drawn:
        chosen = _accept_or_replace(
            logits[mx.array(list(drawn))],
            [positions[place] for place in drawn],
            [token for token, _ in drawn.values()],
            mx.stack([log_q for _, log_q in drawn.values()]),
        )
        for place, token in zip(drawn, chosen, strict=True):
            tokens[place] = token
    return tokens


def _accept_or_replace(
    logits: mx.array, positions: Sequence[Position], guesses: Sequence[int], log_q: mx.array
) -> list[int]:
    raw = sampling.log_distribution(logits, positions)
    log_p = raw - mx.logsumexp(raw, axis=-1, keepdims=True)
    guess = mx.array(list(guesses))[:, None]
    ratio = mx.take_along_axis(log_p, guess, axis=-1) - mx.take_along_axis(log_q, guess, axis=-1)
    uniform = sampling.uniform_noise([replace(p, stream=ACCEPTANCE_STREAM) for p in positions])
    accepted = mx.log(uniform)[:, None] < ratio
    residual = mx.log(mx.maximum(mx.exp(log_p) - mx.exp(log_q), 0))
    other = mx.argmax(
        residual + sampling.gumbel_noise(sampling.keys_of(positions), logits.shape[-1]), axis=-1, keepdims=True
    )
    return sampling.as_ids(mx.where(accepted, guess, other)[:, 0])


def _certain(token: int, vocab_size: int) -> mx.array:
    return mx.where(mx.arange(vocab_size) == token, 0.0, sampling.FORBIDDEN)


def accepted_count(draft: Sequence[int], sampled: Sequence[int]) -> int:
    """How many leading drafts are the tokens that the target chose itself."""
    for count, (drafted, chosen) in enumerate(zip(draft, sampled, strict=False)):
        if drafted != chosen:
            return count
    return len(draft)
