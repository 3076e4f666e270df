"""Two drafters at once: each row's draft is computed by a model or copied from a text, whichever promises more.

A copy costs no forward, so that a long certain match is drafted further than the model would be asked to. Which of the
two a row takes is part of the choice of the draft lengths (`draft_length/choice.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mlx.core as mx

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.row import Row
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.drafts import Drafts
from parallm_openai.settings import Acceptance, EngineConfig


class Portfolio(Drafter):
    """A drafter with a model, and one that copies."""

    def __init__(self, computing: Drafter, copying: Drafter) -> None:
        self.computing, self.copying = computing, copying
        self.name = f"{computing.name}+{copying.name}"
        self.runner = computing.runner
        self.reads_hidden_states = computing.reads_hidden_states

    def chances(self, row: Row, count: int) -> Sequence[float] | None:
        return self.copying.chances(row, count)

    def propose(
        self, batch: Batch, lengths: Sequence[int], acceptance: Acceptance, copied: Sequence[bool] = ()
    ) -> Drafts:
        copied = copied or [False] * len(lengths)
        wanted = list(zip(lengths, copied, strict=True))
        computed = self.computing.propose(batch, [0 if copy else length for length, copy in wanted], acceptance)
        if not any(copied):
            return computed
        copies = self.copying.propose(batch, [length if copy else 0 for length, copy in wanted], acceptance)
        return _joined(computed, copies) if computed.longest else copies

    def read_along(self, batch: Batch, rows: Collection[Row], width: int) -> None:
        self.computing.read_along(batch, rows, width)

    def learn(self, row: Row, tokens: Sequence[int]) -> None:
        self.computing.learn(row, tokens)
        self.copying.learn(row, tokens)

    def ended(self, row: Row, config: EngineConfig) -> None:
        self.computing.ended(row, config)
        self.copying.ended(row, config)

    def evict(self, config: EngineConfig) -> None:
        self.computing.evict(config)
        self.copying.evict(config)


def _joined(computed: Drafts, copies: Drafts) -> Drafts:
    """Each row's draft, from the one or the other. The computed ones may still be on their way."""
    lengths = [own or other for own, other in zip(computed.lengths, copies.lengths, strict=True)]
    copying = mx.array([length > 0 for length in copies.lengths])[:, None]
    ids = mx.where(copying, _ids(copies, max(lengths)), _ids(computed, max(lengths)))
    return Drafts(lengths, ids, computed.log_q, computed.waits)


def _ids(drafts: Drafts, width: int) -> mx.array:
    """Drafts as an array `[rows, width]`, padded."""
    ids = Inputs.of(drafts.tokens).ids if drafts.ids is None else drafts.ids
    return mx.pad(ids, [(0, 0), (0, width - ids.shape[1])])
