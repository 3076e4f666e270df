"""What the engine needs of a batch's cache. Imports no MLX, so that the scheduler can name it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import mlx.core as mx

    from parallm_openai.engine.cache.inputs import Inputs


class BatchCache(Protocol):
    """One model's cached state for the rows of a batch; slot i holds the i-th row.

    How many tokens of a slot count is the engine's knowledge, not the cache's: a forward writes after the given
    lengths, and becomes part of a row when the engine commits it by adding to that row's length. So a rejected draft
    costs nothing: the next forward writes over it.
    """

    def append_row(self) -> None:
        """Add an empty slot at the end."""

    def append_row_from(self, other: BatchCache, slot: int, length: int) -> None:
        """Add a slot at the end with a copy of the first `length` tokens of another cache's slot."""

    def remove_row(self, slot: int, last_length: int) -> None:
        """Drop a slot; the last one, of which `last_length` tokens count, moves into its place."""

    def copy_row(self, slot: int, length: int) -> BatchCache | None:
        """A cache with the first `length` tokens of one slot; None if the state of a beginning cannot be had."""

    def keep(self, slot: int, length: int) -> None:
        """Make sure that rows can begin with the slot's first `length` tokens, and do so in copies of the slot."""

    def beginning(self, slot: int, length: int) -> int:
        """The most of a slot's first `length` tokens that another row can begin with."""

    @property
    def state_tokens(self) -> int:
        """How many tokens' keys and values would take as much memory as the states that its slots hold."""

    def reserve(self, rows: int) -> None:
        """Make room for so many rows at once."""

    def forward(self, inputs: Inputs, lengths: Sequence[int], certain: Sequence[int] | None = None) -> mx.array:
        """Run the model over the inputs of the first slots, after `lengths` tokens of each.

        The first `certain` tokens of each, by default those that are there before, will never be rolled back. Returns
        logits `[sum(inputs.wanted), vocab]`, not yet computed.
        """

    def evaluate(self) -> None:
        """Compute the state that the last forward wrote, without its logits."""
