"""RoPE scaling from a GGUF file's metadata and factors, in the form of a config.json."""

from __future__ import annotations

from typing import Any

from parallm_openai.models.gguf.facts import Facts
from parallm_openai.models.gguf.finding import GgufError


def rope_scaling(facts: Facts, rotated: int) -> dict[str, Any] | None:
    """`rope_scaling` for a model that rotates so many dimensions of a head; None if its positions are not scaled.

    Raises GgufError for a type that is not known.
    """
    kind = facts.get("rope.scaling.type")
    if (factors := facts.factors("rope_factors_long.weight", rotated // 2)) is not None:
        short = facts.factors("rope_factors_short.weight", rotated // 2)
        return _by_factors(factors, short or factors, facts.whole("rope.scaling.original_context_length"))
    if (factors := facts.factors("rope_freqs.weight", rotated // 2)) is not None:
        # Llama 3's scaling is stated by its outcome alone. `longrope` takes just that; with the whole context as the
        # original one it leaves attention as it is.
        return _by_factors(factors, factors, facts.whole("context_length"))
    factor = facts.number("rope.scaling.factor", "rope.scale_linear", default=1.0)
    if kind == "yarn":
        return _yarn(facts, factor)
    if kind not in (None, "none", "linear", "longrope"):
        raise GgufError(f"its RoPE scaling of the type {kind!r} is not supported")
    return {"type": "linear", "factor": factor} if kind != "none" and factor not in (0.0, 1.0) else None


def _by_factors(long: list[float], short: list[float], original: int) -> dict[str, Any] | None:
    if set(long) == {1.0}:
        return None
    return {
        "type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original,
    }


def _yarn(facts: Facts, factor: float) -> dict[str, Any] | None:
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        if facts.get(key) not in (None, 1.0):
            raise GgufError(f"its {facts.architecture}.{key} is {facts.get(key)}, which is not supported")
    if factor <= 1.0:
        return None
    return {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.whole(
            "rope.scaling.original_context_length", default=facts.whole("context_length")
        ),
        "beta_fast": facts.number("rope.scaling.yarn_beta_fast", default=32.0),
        "beta_slow": facts.number("rope.scaling.yarn_beta_slow", default=1.0),
    }
