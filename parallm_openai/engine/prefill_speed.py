"""How long reading prompts takes, learnt while serving, so that it holds up the rows that decode only so long."""

from __future__ import annotations

from parallm_openai.engine.speculation.draft_length.step_cost import context_bucket

# The weight of a new measurement beside what is known.
SMOOTHING = 0.3
# Until something is measured, and if even this takes too long: fewer tokens would hardly take less time.
FEWEST_TOKENS = 32


class PrefillSpeed:
    """Seconds for each token that a forward reads, by how much context it attends to.

    A forward costs as much as `forward_tokens` tokens more, whatever it reads.
    """

    def __init__(self, forward_tokens: int) -> None:
        self.forward_tokens = forward_tokens
        self._seconds: dict[int, float] = {}

    def learn(self, tokens: int, context: int, seconds: float) -> None:
        """A forward over a rectangle of so many tokens, after `context` of them, took so long."""
        measured = seconds / (tokens + self.forward_tokens)
        bucket = context_bucket(context)
        known = self._seconds.get(bucket)
        # The first forward of its kind may have compiled kernels.
        self._seconds[bucket] = measured if known is None else known + SMOOTHING * (min(measured, 2 * known) - known)

    def tokens_within(self, seconds: float, context: int) -> int:
        """How many tokens a forward after `context` of them reads in this time."""
        known = self._known(context_bucket(context))
        if known is None:
            return FEWEST_TOKENS
        return max(FEWEST_TOKENS, int(seconds / known) - self.forward_tokens)

    def _known(self, bucket: int) -> float | None:
        """What was measured at this context, or the nearest one."""
        nearest = min(self._seconds, key=lambda other: (abs(other - bucket), other), default=None)
        return None if nearest is None else self._seconds[nearest]
