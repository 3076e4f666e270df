"""One model, run over the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from parallm_openai.engine.batch import Batch
from parallm_openai.engine.cache.inputs import Inputs
from parallm_openai.engine.cache.native import NativeCache, NativePrefill
from parallm_openai.engine.cache.protocol import BatchCache
from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.speculation.hidden_states import Piece
from parallm_openai.models.language_model import LanguageModel, hidden_states

MakeCache = Callable[[Ragged, LanguageModel], BatchCache]


class ModelRunner:
    """A model and the role that it has for a row: the target that is served, or the draft model.

    Rows prefill in a cache of their own, so that a long prompt neither widens nor blocks the decoding batch; a row
    whose prompt is computed is copied over. Without `ragged`, those are mlx-lm's own batch caches. `vocab_size` is
    given if rows may hold ids that the model does not have; it reads those as 0. If the model `keeps_hidden_states`,
    every forward leaves them with its rows. `make_cache` is given if its caches are also those of other ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        role: str,
        *,
        ragged: Ragged | None = Ragged(),
        vocab_size: int | None = None,
        keeps_hidden_states: bool = False,
        make_cache: MakeCache | None = None,
    ) -> None:
        self.model = LanguageModel(model)
        self.role = role
        self.ragged = ragged
        self.vocab_size = vocab_size
        self.keeps_hidden_states = keeps_hidden_states
        self.shared = make_cache is not None
        self.make_cache = make_cache or Ragged.cache

    def prefill_cache(self) -> BatchCache:
        return NativePrefill(self.model) if self.ragged is None else self.make_cache(self.ragged, self.model)

    def decode_cache(self) -> BatchCache:
        return NativeCache(self.model) if self.ragged is None else self.make_cache(self.ragged, self.model)

    def prefill(self, batch: Batch, chunks: Sequence[Sequence[int]], wanted: Sequence[int] | None = None) -> mx.array:
        """Compute these next tokens of the batch's first rows, and commit them.

        Returns logits of the last `wanted[i]` tokens of each row's chunk, not computed unless somebody evaluates them.
        """
        wanted = [0] * len(chunks) if wanted is None else wanted
        if 0 < max(wanted) < max(map(len, chunks)) and not self.model.has_head:
            # Such a model computes logits wherever it reads, or nowhere: those of a whole prompt would fill the memory.
            ends = [len(chunk) - count if count else len(chunk) for chunk, count in zip(chunks, wanted, strict=True)]
            self.prefill(batch, [chunk[:end] for chunk, end in zip(chunks, ends, strict=True)])
            chunks = [chunk[end:] for chunk, end in zip(chunks, ends, strict=True)]
        logits = self.advance(batch, Inputs.of(chunks, wanted), for_good=True)
        batch.caches[self.role].evaluate()
        return logits

    def advance(self, batch: Batch, inputs: Inputs, *, for_good: bool = False) -> mx.array:
        """As `forward`, but commits what it computes: `for_good` if nothing of that will be rolled back."""
        logits = self.forward(batch, inputs, for_good=for_good)
        for row, count in zip(batch.rows, inputs.counts, strict=False):
            row.computed[self.role].length += count
        return logits

    def forward(self, batch: Batch, inputs: Inputs, in_flight: int = 0, *, for_good: bool = False) -> mx.array:
        """Logits `[sum(inputs.wanted), vocab]` of the batch's first rows; commits nothing.

        The inputs come after what is committed and `in_flight` tokens that an earlier forward is computing.
        """
        rows = batch.rows[: inputs.rows]
        lengths = [row.computed[self.role].length + in_flight for row in rows]
        if for_good:
            certain = [length + count for length, count in zip(lengths, inputs.counts, strict=True)]
        else:
            certain = [row.certain(self.role) for row in rows]
        if self.vocab_size is not None:
            inputs = replace(inputs, ids=mx.where(inputs.ids < self.vocab_size, inputs.ids, 0))
        if not self.keeps_hidden_states:
            return batch.caches[self.role].forward(inputs, lengths, certain)
        with hidden_states() as seen:
            logits = batch.caches[self.role].forward(inputs, lengths, certain)
        for slot, (row, length, count) in enumerate(zip(rows, lengths, inputs.counts, strict=True)):
            if count:
                row.hidden.write(Piece(length, count, seen[0], slot * inputs.width))
        return logits
