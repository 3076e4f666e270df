"""ParaLLM OpenAI: speculative decoding inside a continuous batch, behind OpenAI's API, on MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallm_openai.models import blas, jit

# Must run before anything imports mlx; see models/blas.py and models/jit.py.
blas.preload()
jit.prepare()

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from parallm_openai.llm import LLM, SamplingParams


def __getattr__(name: str) -> Any:
    """Import what needs mlx only when it is asked for: `parallm-openai --help` need not wait for it."""
    if name in ("LLM", "SamplingParams"):
        from parallm_openai import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
