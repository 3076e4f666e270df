"""Drafting with a smaller model of the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from parallm_openai.config import Acceptance
from parallm_openai.engine import sampling
from parallm_openai.engine.kv_cache import RaggedCache
from parallm_openai.engine.row import Row
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.sampling import DRAFT_STREAM, Position
from parallm_openai.engine.speculation.drafter import NO_DRAFT, Draft, Drafter

# A row that has fallen further behind than this, after a long spell without drafts, starts
# over with its last few tokens alone: a draft needs no exact context, only a cheap one.
CATCH_UP = 48
RESTART = 24


class DraftModel(Drafter):
    """Drafts with the target's own noise: where the two distributions agree, so do their draws.

    Its cache mirrors the target's rows. After a fully accepted draft it owes two tokens,
    else one; after steps without drafts, as many as those steps brought. `starts` is the
    index of the first token that each row's cache holds.
    """

    name = "draft_model"

    def __init__(self, model: nn.Module, vocab_size: int, target_vocab_size: int, mask_axes: int = 4) -> None:
        self.runner = ModelRunner(model, ragged=True, mask_axes=mask_axes)
        self.vocab_size = vocab_size
        self.target_vocab_size = target_vocab_size
        self.starts: list[int] = []

    def admit(self, kept: RaggedCache | None = None, length: int = 0) -> None:
        self.runner.admit(kept, length)

    def copy(self, row: int, length: int) -> RaggedCache | None:
        return self.runner.copy(row, length) if self.starts[row] == 0 else None

    def prefill(self, rows: Sequence[Row], width: int) -> None:
        self.runner.prefill(rows, width, self._known)

    def promote(self, source: Drafter, row: int) -> None:
        assert isinstance(source, DraftModel)
        if source is self:
            self.runner.decoding.reserve(len(self.starts) + len(self.runner.prefilling.lengths))
        self.runner.decoding.take(source.runner.prefilling, row)
        self.starts.append(0)

    def move(self, source: Drafter, row: int) -> None:
        assert isinstance(source, DraftModel)
        self.runner.decoding.take(source.runner.decoding, row)
        self.starts.append(source.starts[row])

    def drop_prefilling(self, row: int) -> None:
        self.runner.prefilling.remove(row)

    def drop_running(self, row: int) -> None:
        self.runner.decoding.remove(row)
        self.starts[row] = self.starts[-1]
        self.starts.pop()

    def reset_prefill(self) -> None:
        self.runner.reset_prefill()

    def reset_decode(self) -> None:
        self.runner.reset_decode()
        self.starts.clear()

    def propose(
        self,
        rows: Sequence[Row],
        lengths: Sequence[int],
        limits: Sequence[int],
        acceptance: Acceptance = "coupled",
    ) -> list[Draft]:
        cache = self.runner.decoding
        assert isinstance(cache, RaggedCache)
        owed = self._catch_up(rows, lengths, limits, cache)
        width = max((behind for behind, limit in zip(owed, limits, strict=True) if limit), default=0)
        if not width:
            return [NO_DRAFT] * len(rows)
        # Rows that draft nothing now keep up in the same forward, as far as it is wide anyway.
        reading = [
            self._known(row.tokens[len(row.tokens) - behind :][:width]) for row, behind in zip(rows, owed, strict=True)
        ]
        drafts = [NO_DRAFT] * len(rows)
        while any(reading):
            logits = cache.forward(reading)
            cache.commit([len(ids) for ids in reading])
            drafting = [i for i, limit in enumerate(limits) if len(drafts[i]) < limit]
            last = [len(reading[i]) - 1 for i in drafting]
            chosen = self._fit(logits[mx.array(drafting), mx.array(last)])
            self._extend(rows, drafts, drafting, chosen, acceptance)
            reading = [
                self._known(draft.tokens[-1:]) if len(draft) < limit else []
                for draft, limit in zip(drafts, limits, strict=True)
            ]
        return drafts

    def _extend(
        self,
        rows: Sequence[Row],
        drafts: list[Draft],
        drafting: Sequence[int],
        logits: mx.array,
        acceptance: Acceptance,
    ) -> None:
        """Draw each drafting row's next token; where acceptance is coupled, just as the target will its own."""
        positions = [rows[i].position(drafts[i].tokens) for i in drafting]
        if acceptance == "rejection":
            positions = [replace(position, stream=DRAFT_STREAM) for position in positions]
        tokens = sampling.sample(logits, positions)
        log_q = self._log_q(logits, positions) if acceptance == "rejection" else {}
        for at, (i, token) in enumerate(zip(drafting, sampling.as_ids(tokens), strict=True)):
            seen = (log_q[at],) if at in log_q else ()
            drafts[i] = Draft((*drafts[i].tokens, token), drafts[i].log_q + seen, informed=self.starts[i] == 0)

    def _log_q(self, logits: mx.array, positions: Sequence[Position]) -> dict[int, mx.array]:
        """The distributions that the sampled rows drew from; greedy rows draw from none."""
        drawn = [at for at, position in enumerate(positions) if not position.params.greedy]
        if not drawn:
            return {}
        raw = sampling.log_distribution(logits[mx.array(drawn)], [positions[at] for at in drawn])
        normal = raw - mx.logsumexp(raw, axis=-1, keepdims=True)
        mx.eval(normal)
        return dict(zip(drawn, normal, strict=True))

    def _catch_up(
        self, rows: Sequence[Row], lengths: Sequence[int], limits: Sequence[int], cache: RaggedCache
    ) -> list[int]:
        """Forget rejected drafts, start over where too much is missing; returns the tokens owed by row."""
        cache.trim([length - start for length, start in zip(lengths, self.starts, strict=True)])
        for i, (row, limit) in enumerate(zip(rows, limits, strict=True)):
            if limit and len(row.tokens) - self.starts[i] - cache.lengths[i] > CATCH_UP:
                self.starts[i] = len(row.tokens) - RESTART
                cache.lengths[i] = 0
        return [
            len(row.tokens) - start - held for row, start, held in zip(rows, self.starts, cache.lengths, strict=True)
        ]

    def _fit(self, logits: mx.array) -> mx.array:
        """The draft's logits over the target's vocabulary: the noise of a draw depends on its size."""
        missing = self.target_vocab_size - logits.shape[-1]
        if missing > 0:
            return mx.pad(logits, [(0, 0), (0, missing)], constant_values=sampling.FORBIDDEN)
        return logits[:, : self.target_vocab_size]

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Tokens as the draft may read them: one that it has not got is replaced by 0."""
        return [token if token < self.vocab_size else 0 for token in tokens]
