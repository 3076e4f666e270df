"""Step costs for simulations: a machine whose forwards have a price, and a price for each token."""

from __future__ import annotations

from typing import Any

from parallm_openai.simulation.costs import Grid, StepCosts, Traits


def linear(fixed: float, per_token: float, *, sizes_are_widths: bool = True) -> Grid:
    """A forward's seconds grow with its tokens, and not with the context."""
    rows, sizes = (1, 16), (1, 8) if sizes_are_widths else (1, 512)
    seconds = tuple(
        tuple((fixed + per_token * size * (count if sizes_are_widths else 1),) for size in sizes) for count in rows
    )
    return Grid(rows=rows, sizes=sizes, contexts=(0,), seconds=seconds)


def step_costs(**changes: Any) -> StepCosts:
    read = linear(0.01, 0.0005, sizes_are_widths=False)
    fields: dict[str, Any] = {
        "model": "made up",
        "machine": "none",
        "traits": Traits(padding_limit=100_000, forward_tokens=24, prefill_tokens=512),
        "context_length": 4096,
        "drafter": "draft_model",
        "verify": linear(0.02, 0.0005),
        "prefill": read,
        "draft": linear(0.003, 0.0001),
        "draft_prefill": read,
        "step_seconds": (0.0005, 0.0001),
        "spread": (0.9, 1.0, 1.1),
        "acceptance": (0.3, 0.6, 0.9),
        "request_seconds": 0.004,
    }
    return StepCosts(**{**fields, **changes})
