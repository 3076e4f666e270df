"""ParaLLM OpenAI: speculative decoding inside a continuous batch, behind OpenAI's API, on MLX.

Importing this package changes nothing in the process and imports no mlx. On a Linux CPU, MLX is fast only if
`prepare()` has run before anything imports mlx. The command line calls it, asking for `parallm_openai.LLM` does, and
so do the classes that load a model. A program that imports mlx before all of these calls it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__", "prepare"]

if TYPE_CHECKING:
    from parallm_openai.cpu import prepare
    from parallm_openai.llm import LLM, SamplingParams


def __getattr__(name: str) -> Any:
    """Import what takes long only when it is asked for: `parallm-openai --help` need not wait for it."""
    if name == "prepare":
        from parallm_openai.cpu import prepare

        return prepare
    if name == "LLM":
        from parallm_openai.cpu import prepare
        from parallm_openai.llm import LLM

        # Already now: the program may import mlx before it makes one.
        prepare()
        return LLM
    if name == "SamplingParams":
        from parallm_openai.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
