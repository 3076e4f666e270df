"""How prompts of different lengths share forwards."""

from __future__ import annotations

from collections.abc import Sequence


def first_width(lengths: Sequence[int], forward_tokens: int) -> int:
    """The width of the first of those forwards that compute all rows at the least cost.

    A forward costs the tokens of its rectangle and `forward_tokens` more; a row leaves it once its prompt is computed.
    """
    cuts = sorted({0, *lengths})
    cost = {cuts[-1]: 0}
    width = 0
    for place in range(len(cuts) - 2, -1, -1):
        start = cuts[place]
        rows = sum(length > start for length in lengths)
        costs = {end: forward_tokens + rows * (end - start) + cost[end] for end in cuts[place + 1 :]}
        best = min(costs, key=lambda end: (costs[end], -end))
        cost[start], width = costs[best], best - start
    return width
