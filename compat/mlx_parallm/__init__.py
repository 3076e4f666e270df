"""`mlx_parallm`'s names on ParaLLM OpenAI: put `compat/` on the path and old imports work unchanged."""

from parallm_openai import LLM, SamplingParams
from parallm_openai.continuous_batching import AsyncContinuousBatchingEngine, BatchConfig
from parallm_openai.speculative_decoding import SpeculativeConfig, SpeculativeDecodingEngine

__all__ = [
    "LLM",
    "AsyncContinuousBatchingEngine",
    "BatchConfig",
    "SamplingParams",
    "SpeculativeConfig",
    "SpeculativeDecodingEngine",
]
